"""`gpu_check` loses one stage at most when time is up, and goes on where it stopped."""

import json
import time

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks import gpu_check, gpu_stages
from benchmarks.gpu_check import Stage, check
from benchmarks.stubbed import stubbed
from pac_ops.backends.triton import cycles

WRITES = "import os, pathlib; pathlib.Path(os.environ['OUT'], 'rows.csv').open('a').write('row\\n')"


def test_a_stage_that_hangs_or_fails_does_not_stop_the_others(tmp_path):
    stages = (
        Stage("first", 20, ("-c", WRITES)),
        Stage("hangs", 1, ("-c", f"{WRITES}; import time; time.sleep(60)")),
        Stage("fails", 20, ("-c", "raise SystemExit(3)")),
        Stage("lacks", 20, ("-c", WRITES), ("no-such-profiler",)),
        Stage("last", 20, ("-c", "print('at the end')")),
    )
    started = time.monotonic()
    ended = check(stages, tmp_path)
    assert ended == {"first": "passed", "hangs": "late", "fails": "failed", "lacks": "skipped", "last": "passed"}
    assert time.monotonic() - started < 30
    assert (tmp_path / "rows.csv").read_text() == "row\nrow\n"  # what a stage wrote before its deadline stays
    assert "at the end" in (tmp_path / gpu_check.LOG).read_text()
    assert json.loads((tmp_path / gpu_check.STATE).read_text()) == ended
    assert check(stages, tmp_path)["hangs"] == "late"  # which alone is tried again
    assert (tmp_path / "rows.csv").read_text() == "row\n" * 3


def test_all_deadlines_together_are_within_the_budget():
    assert sum(stage.seconds for stage in gpu_check.STAGES) <= gpu_check.BUDGET
    assert len({stage.name for stage in gpu_check.STAGES}) == len(gpu_check.STAGES)


def test_without_a_gpu_nothing_is_run(tmp_path, monkeypatch):
    from click.testing import CliRunner

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = CliRunner().invoke(gpu_check.main, ["--output", str(tmp_path)])
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_stages_rehearsed_with_launches_stubbed_out(tmp_path, monkeypatch):
    """Those that launch by themselves, from start to end."""
    monkeypatch.setattr(gpu_stages, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_stages, "SHAPES", ((1, 64, 16),))
    monkeypatch.setattr(gpu_stages, "CHECKED", (1, 16, 6))
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr("triton.testing.do_bench", lambda run, *_: float(run() is not None))
    monkeypatch.setenv(gpu_check.OUTPUT, str(tmp_path))
    before = {how: dict(each) for how, each in cycles.SUM.items()}
    with stubbed():
        gpu_stages.tiles()
        gpu_stages.once(backward=True)
        with pytest.raises(SystemExit, match="beyond its bound"):  # as nothing was computed
            gpu_stages.correct()
    rows = (tmp_path / "tiles.csv").read_text().splitlines()
    assert len(rows) == len(before["16 bits"]) + len(before["tf32"])
    assert before == cycles.SUM
