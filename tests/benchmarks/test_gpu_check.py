"""`gpu_check` loses one case at most when time is up, goes on where it stopped, and all of its code runs."""

import argparse
import dataclasses
import importlib
import json
import os
import re
import time
import traceback
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks import gpu, gpu_check, gpu_correct, gpu_stages, gpu_tiles, limits, operators, rehearsal
from benchmarks.gpu_check import STAGES, Stage, check
from benchmarks.harness import BOTH, COMMIT, FORWARD, GRAPHED, OUTPUT, rows_of
from pac_ops.backends import choose, reference
from pac_ops.backends.triton import cycles

WRITES = "import os, pathlib; pathlib.Path(os.environ['OUT'], 'rows.csv').open('a').write(os.environ['COMMIT'])"


def test_a_stage_that_hangs_or_fails_does_not_stop_the_others(tmp_path):
    stages = (
        Stage("first", 20, ("-c", WRITES)),
        Stage("fails", 20, ("-c", "raise SystemExit(1)")),
        Stage("lacks", 1, ("-c", f"raise SystemExit({gpu_stages.MISSING})")),
        Stage(
            "hangs", -38, ("-c", f"{WRITES}; import time; time.sleep(60)")
        ),  # so what others left is 1 to 3 seconds
        Stage("last", 20, ("-c", "print('at the end')")),
    )
    started = time.monotonic()
    ended = check(stages, tmp_path, "c")
    assert ended == {"first": "passed", "fails": "failed", "lacks": "missing", "hangs": "late", "last": "passed"}
    assert time.monotonic() - started < 30
    assert (tmp_path / "rows.csv").read_text() == "cc"  # what a stage wrote before its deadline stays
    assert "at the end" in (tmp_path / gpu_check.LOG).read_text()
    assert json.loads((tmp_path / gpu_check.STATE).read_text()) == ended


def test_a_second_call_runs_what_is_left(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(gpu_check, "_run", lambda stage, *_: ran.append(stage.name) or "passed")
    names = ("passed", "failed", "late", "missing", "new")
    monkeypatch.setattr(gpu_check, "STAGES", [Stage(name, 1, ()) for name in names])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / gpu_check.STATE).write_text(json.dumps({name: name for name in names[:-1]}))
    arguments = ["--output", str(tmp_path / "second"), "--resume", str(tmp_path / "first")]
    assert CliRunner().invoke(gpu_check.main, arguments).exit_code == 0
    assert ran == ["new", "late", "failed"]


def test_all_deadlines_together_are_within_the_budget():
    assert sum(stage.seconds for stage in STAGES) <= gpu_check.BUDGET == 8 * 60
    assert len({stage.name for stage in STAGES}) == len(STAGES)


def test_without_a_gpu_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = CliRunner().invoke(gpu_check.main, ["--output", str(tmp_path)])
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_every_table_of_tiles_is_swept():
    tables = [table for table in vars(cycles).values() if isinstance(table, dict) and gpu_tiles.NARROW in table]
    assert all(any(table is swept for swept in gpu_tiles.TABLES.values()) for table in tables)


def ncu(command):
    """What a tool is asked for: options that it has, and what it writes."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--clock-control", choices=["none", "base"])
    parser.add_argument("--profile-from-start", choices=["on", "off"])
    parser.add_argument("--set", choices=["basic", "detailed", "full"])
    parser.add_argument("--page", choices=["details", "raw", "source", "session"])
    parser.add_argument("--csv", action="store_true")
    parser.add_argument("--log-file", type=Path)
    parser.add_argument("program", nargs=argparse.REMAINDER)
    options = parser.parse_args(command)
    options.log_file.write_text('"ID","Kernel Name"\n"0","_dot_kernel"\n')
    return options.program


def sanitizer(command):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--tool", choices=["memcheck", "racecheck", "initcheck", "synccheck"])
    parser.add_argument("--report-api-errors", choices=["all", "explicit", "no"])
    parser.add_argument("--error-exitcode", type=int)
    parser.add_argument("program", nargs=argparse.REMAINDER)
    return parser.parse_args(command).program


def by_tool(command, **_):
    """The program that a tool runs, in this process."""
    program = {"ncu": ncu, "compute-sanitizer": sanitizer, "nvidia-smi": lambda _: []}[command[0]](command[1:])
    return SimpleNamespace(returncode=run(program[1:]) if program else 0)


class InThisProcess:
    """In place of a pool of processes."""

    def __init__(self, workers, mp_context):
        assert workers == os.cpu_count()
        assert mp_context.get_start_method() == "spawn"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, *arguments):
        return map(function, *arguments)


def run(command):
    """The exit status of `python COMMAND`, a click command of a module, in this process."""
    option, module, *arguments = command
    assert option == "-m"
    path = module if module != "benchmarks" else "benchmarks.__main__"
    try:
        importlib.import_module(path).main(arguments, standalone_mode=False)
    except SystemExit as ended:
        return ended.code
    except Exception:  # noqa: BLE001 (as a process ends that raises)
        traceback.print_exc()
        return 1
    return 0


@pytest.fixture
def rehearsed(tmp_path, monkeypatch):
    """Stages run by `gpu_check` itself, in this process, on the CPU; and how each ended."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(gpu_stages, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(gpu_stages, "subprocess", SimpleNamespace(run=by_tool))
    monkeypatch.setattr(gpu_stages, "shutil", SimpleNamespace(which=lambda name: name))

    def in_this_process(stage, seconds, environment, log):
        monkeypatch.setenv(OUTPUT, environment[OUTPUT])
        monkeypatch.setenv(COMMIT, environment[COMMIT])
        return gpu_check._HOW.get(run(stage.command), "failed")

    monkeypatch.setattr(gpu_check, "_run", in_this_process)
    with rehearsal.rehearsed():
        yield


def rows(folder):
    return {path.name: rows_of(path) for path in folder.glob("*.csv")}


def test_all_stages_rehearsed_with_launches_stubbed_out(tmp_path, rehearsed):
    once = {"--seconds": "0"}  # as many rounds as there must be
    stages = [
        dataclasses.replace(stage, command=tuple(once.get(b, a) for b, a in pairwise(("", *stage.command))))
        for stage in STAGES
        if stage.command[1] != "pytest"
    ]
    ended = check(stages, tmp_path, "commit")
    assert ended == {stage.name: "passed" for stage in stages}

    measured = rows(tmp_path)
    assert {row["mode"] for row in measured["benchmarks.csv"] if row["op"] == "pacconv2d"} == {
        mode + how for mode in (FORWARD, BOTH) for how in ("", GRAPHED)
    }
    assert {row["dtype"] for row in measured["benchmarks.csv"] if row["op"] == "pacconv2d"} == set(gpu.PRECISIONS)
    assert {row["dtype"] for row in measured["benchmarks.csv"] if row["op"] == limits.PRODUCT} == {"bfloat16", "tf32"}
    assert {"pac_ops triton", "pac_ops triton, channels-last", *operators.CONVS, operators.DEFORM} <= {
        row["backend"] for row in measured["benchmarks.csv"]
    }
    wanted = {"packernel2d", "pacconv_transpose2d", "pacresize2d", "PacCRF", "FCN-8s", "launch of PacConv2d"}
    assert wanted <= {row["op"] for row in measured["benchmarks.csv"]}
    assert len(measured["tiles.csv"]) == sum(len(job.tiles) for _, job in gpu_tiles.jobs())
    assert not any(row["why"] for row in measured["tiles.csv"])
    assert {row["met"] for row in measured["correctness.csv"]} == {"True"}
    assert (tmp_path / gpu_stages.PROFILE).read_text().count("Self CPU time total") == 4
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) <= 8
    assert all(path.parent == tmp_path and re.fullmatch(r"[\w.-]+", path.name) for path in kept)

    # What has rows is not measured again.
    for name in ("correctness", "tiles", "operators, bfloat16"):
        ended[name] = "late"
    (tmp_path / gpu_check.STATE).write_text(json.dumps(ended))
    assert check(stages, tmp_path, "commit") == {stage.name: "passed" for stage in stages}
    assert rows(tmp_path) == measured


def test_the_command_of_the_tests_is_one_that_runs(request):
    (stage,) = [stage for stage in STAGES if stage.command[1] == "pytest"]
    assert all((gpu_check.ROOT / part).exists() for part in stage.command if part.startswith("tests"))
    marker = pytest.importorskip("_pytest.mark.expression").Expression.compile(stage.command[-1])
    assert marker.evaluate(lambda name, **_: name == "gpu")
    assert request.config.pluginmanager.hasplugin("xdist")


def test_what_is_wrong_or_breaks_is_a_row_and_fails(tmp_path, rehearsed, monkeypatch):
    backend = choose.load("triton")

    def breaks(*_):
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(backend, "pacpool2d", breaks)
    monkeypatch.setattr(backend, "gaussian_kernel2d", lambda x, window: reference.gaussian_kernel2d(x, window) * 1.1)
    assert not gpu_correct.correct(tmp_path)
    found = [row for row in rows_of(tmp_path / gpu_correct.FILE) if row["met"] != "True"]
    assert {row["family"] for row in found} == {
        "pooling",
        "pooling, channel-wise",
        "K",
        "K, 5x5, dilated",
        "K, strided",
    }
    assert {row["why"] for row in found if row["family"] == "pooling"} == {"RuntimeError: no such instruction"}
    assert all(float(row["error"]) == pytest.approx(0.1, rel=0.1) for row in found if row["family"] == "K")


def test_a_tool_that_may_not_read_counters_is_missing(tmp_path, rehearsed, monkeypatch):
    def refuses(command, **_):
        Path(command[command.index("--log-file") + 1]).write_text("==ERROR== ERR_NVGPUCTRPERM")
        return SimpleNamespace(returncode=0)

    monkeypatch.setenv(OUTPUT, str(tmp_path))
    monkeypatch.setattr(gpu_stages, "subprocess", SimpleNamespace(run=refuses))
    assert run(("-m", "benchmarks.gpu_stages", "counters")) == gpu_stages.MISSING
    monkeypatch.setattr(gpu_stages, "shutil", SimpleNamespace(which=lambda _: None))
    assert run(("-m", "benchmarks.gpu_stages", "memory")) == gpu_stages.MISSING
