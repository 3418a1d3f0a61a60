"""What a GPU machine brings back becomes the page and the table of tiles, by one command."""

import importlib.util
import shutil

import pytest
from click.testing import CliRunner

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks import gpu_check, gpu_page, gpu_results, gpu_tiles, launching, networks, operators
from benchmarks.gpu_correct import Row as Checked
from benchmarks.harness import BOTH, FORWARD, GRAPHED, RESULTS, Row, save
from benchmarks.rows import OURS, PAGE, with_table

ABOUT = {"device": "a GPU", "threads": 2, "torch": "2", "triton": "3", "commit": "c", "date": "d"}


def row(op, backend, mode, workload, ms, dtype="bfloat16", peak=100):
    return Row(op, backend, mode, dtype, workload, ms, 0.0, "ms", peak, 1.0, 1.0, **ABOUT)


def measured(dtype, forward, backward):
    """Made up: of our layers, so many times cuDNN's time, which is 1 ms in one layout and 2 in the other."""
    for w in operators.TABLE:
        for mode, times in ((FORWARD, forward), (BOTH, backward)):
            for how in ("", GRAPHED):
                yield row("pacconv2d", f"{OURS} triton", mode + how, w.id, 7.0, dtype)
                yield row("pacconv2d", f"{OURS} triton{operators.LAST}", mode + how, w.id, times, dtype, peak=105)
                yield row("pacconv2d", operators.CONVS[0], mode + how, w.id, 2.0, dtype)
                yield row("pacconv2d", operators.CONVS[1], mode + how, w.id, 1.0, dtype)
                if w.batch == 1:
                    yield row("pacconv2d", operators.UNFOLD, mode + how, w.id, 4.0, dtype)
    for how in ("", GRAPHED):
        yield row("packernel2d", f"{OURS} triton", FORWARD + how, operators.FOR_KERNEL.id, 0.06, dtype)
        yield row("packernel2d", operators.CONV, FORWARD + how, operators.FOR_KERNEL.id, 1.0, dtype)


def a_folder(folder):
    """As `gpu_check` leaves it."""
    rows = [*measured("bfloat16", 1.2, 1.5), *measured("tf32", 1.3, 1.3)]
    for mode, swapped in (("inference", 1.04), ("training step", 1.2)):
        for name, ms in ((networks.PLAIN, 9.0), (networks.SWAPPED, 9.0), (networks.PLAIN + networks.LAST, 1.0)):
            rows.append(row("FCN-8s", name, mode, "b1-512x512", ms))
            rows.append(row("FCN-8s", name, mode + GRAPHED, "b1-512x512", ms))
        rows.append(row("FCN-8s", networks.SWAPPED + networks.LAST, mode, "b1-512x512", 2.0))
        rows.append(row("FCN-8s", networks.SWAPPED + networks.LAST, mode + GRAPHED, "b1-512x512", swapped))
    rows.append(row("PacCRF", f"{OURS} triton", FORWARD, "crf", 12.0, "float32"))
    rows.append(row("PacCRF", f"{OURS} triton", FORWARD + GRAPHED, "crf", 8.5, "float32"))
    for name, ms in ((launching.OURS, 0.050), (launching.STOCK, 0.010)):
        rows.append(row("launch of pacconv2d", name, FORWARD, "channels-last", ms))
    save(rows, folder / RESULTS.name)
    shape, tiled = ("sum", "16 bits", True, "b8-c256-128x128-k3", 131072, 256, 256), ("9 0 132", *ABOUT.values())
    for tile, ms, why in (("64 128 64 4 4", 0.2, ""), ("128 256 64 8 4", 0.1, ""), ("64 64 64 4 4", 0.0, "broke")):
        save([gpu_tiles.Row(*shape, tile, ms, why, *tiled)], folder / gpu_tiles.FILE)
    for precision, error in (("float32", 5e-6), ("bfloat16", 0.02)):
        checked = Checked("3x3", "output", precision, "contiguous", error, 1e-2, error <= 1e-2, "", *ABOUT.values())
        save([checked], folder / "correctness.csv")
    (folder / gpu_check.STATE).write_text("{}")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Copies of what the command writes."""
    page, table = tmp_path / "page.md", tmp_path / "measured.py"
    page.write_text(PAGE.read_text())
    shutil.copy(gpu_results.TABLE, table)
    monkeypatch.setattr(gpu_results, "PAGE", page)
    monkeypatch.setattr(gpu_results, "TABLE", table)
    monkeypatch.setattr(gpu_results, "FOLDER", tmp_path / "kept")
    return page, table


def taken_in(folder):
    return CliRunner().invoke(gpu_results.main, [str(folder)])


def test_one_command_takes_in_what_came_back(tmp_path, places):
    page, table = places
    a_folder(tmp_path / "back")
    done = taken_in(tmp_path / "back")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == sorted(
        path.name for path in (tmp_path / "back").iterdir()
    )
    lines = page.read_text().splitlines()
    targets = [
        line for line in lines if line.split(" | ")[0].removeprefix("| ") in {t.name for t in gpu_page.TARGETS}
    ]
    assert targets == [
        "| forward | <= 1.25 of cuDNN's time | 1.20 | met | 1.30 | not met |",
        "| forward, 256 channels and more at batch 8 | <= 1.1 of cuDNN's time | 1.20 | not met | 1.30 | not met |",
        "| forward + backward | <= 1.4 of cuDNN's time | 1.50 | not met | 1.30 | met |",
        "| memory of a step | <= 1.1 of cuDNN's | 1.05 | met | 1.05 | met |",
        "| unfold + einsum | >= 3 of our time | 3.33 | met | 3.08 | met |",
        "| K at 128 x 128, batch 8 | <= 5 % of a 256-channel convolution | 6.00 | not met | 6.00 | not met |",
        "| FCN-8s, inference | <= 1.05 of the plain network's time | 1.04 | met |  |  |",
        "| FCN-8s, training step | <= 1.1 of the plain network's time | 1.20 | not met |  |  |",
        "| PAC-CRF | <= 10 ms |  |  | 8.50 | met |",
        "| a call, eager | <= 30 us above a convolution's | 40.00 | not met |  |  |",
    ]
    shape = "| b8-c512-64x64-k3 | bfloat16 | 7.000 | 1.200 | 1.20 | 1.200 | 1.20 |  |  | 0 (1.05) |"
    assert shape in lines
    assert "| bfloat16 | 1 | 2.00 | 2.00 | 3x3, output, contiguous |" in lines
    assert (
        "| FCN-8s, swapped, channels-last | b1-512x512 | bfloat16 | inference | 1.040 | 2.000 | plain, channels-last 0.96 |"
        in lines
    )
    module = loaded(table)
    assert module.CHIP == (9, 0, 132)
    assert module.MEASURED == {("sum", "16 bits", True, 17, 8, 8): (128, 256, 64, 8, 4)}
    before = page.read_text(), table.read_text()
    assert taken_in(tmp_path / "kept").exit_code == 0  # once more, from what was kept
    assert (page.read_text(), table.read_text()) == before


def loaded(path):
    spec = importlib.util.spec_from_file_location("measured", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_part_of_the_measurements_meets_no_target(tmp_path, places):
    page, _ = places
    save([*measured("bfloat16", 1.2, 1.5)][:9], tmp_path / "back" / RESULTS.name)
    (tmp_path / "back" / gpu_check.STATE).write_text("{}")
    assert taken_in(tmp_path / "back").exit_code == 0
    assert "| forward | <= 1.25 of cuDNN's time | 1.20 | 1 of 16 measured |  |  |" in page.read_text()


def test_a_folder_of_something_else_changes_nothing(tmp_path, places):
    before = [path.read_text() for path in places]
    (tmp_path / "back").mkdir()
    done = taken_in(tmp_path / "back")
    assert done.exit_code == 1
    assert done.output.strip().endswith("is no folder of `gpu_check`: it has no gpu_check.json")
    assert [path.read_text() for path in places] == before
    assert not (tmp_path / "kept").exists()


def test_page_and_table_say_what_the_kept_rows_say():
    page = PAGE.read_text()
    for name, table in gpu_page.tables(gpu_check.FOLDER):
        assert with_table(page, name, table) == page
    rows = gpu_tiles.rows_of(gpu_check.FOLDER / gpu_tiles.FILE)
    assert gpu_results.written(*gpu_tiles.fastest(rows)) == gpu_results.TABLE.read_text()
