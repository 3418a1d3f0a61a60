"""Which tiles are taken, and how a few of them are timed."""

import csv

import pretended_gpu
import pytest
import torch
from interpreted import INTERPRETED, triton

from benchmarks import sm90
from pac_ops.backends.triton import convolution, cycles, gather, launch, layout, tiles, winners
from pac_ops.backends.triton.layout import Layout
from pac_ops.geometry import Window

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter has tiles of its own")


@pytest.fixture(autouse=True)
def _hopper(monkeypatch):
    pretended_gpu.pretend(monkeypatch)


def tile(batch, channels, size, dtype=torch.bfloat16, precision="tf32"):
    """Of the plan of a 3 x 3 convolution: the tile, and how many programs there are."""
    image = Layout.dense((batch, channels, size, size), dtype, last=True)
    weight = Layout.dense((channels, channels, 3, 3), dtype, last=True)
    kernel = Layout.dense((batch, 1, 3, 3, size, size), torch.float32)
    settings = layout.Settings(torch.device("cpu"), deterministic=False, precision=precision)
    made = []

    def noted(code, grid, arguments, device):
        made.append(([arguments[f"BLOCK_{side}"] for side in "POI"], grid[0]))
        return launch.Launch(code, grid, arguments, device)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gather, "Launch", noted)
        keys = tuple(tuple(x) for x in (image, kernel, weight))
        convolution._forward_plan((*keys, None), Window((3, 3), padding=(1, 1)), 1, False, tuple(settings))
    return made[0]


def test_small_maps_get_small_tiles():
    assert tile(8, 256, 128)[0] == [128, 256, 64]
    assert tile(1, 256, 64) == ([64, 128, 64], 128)
    assert tile(1, 256, 32)[0] == [64, 64, 64]
    assert tile(8, 256, 64, torch.float32)[0] == [128, 128, 32]
    assert tile(1, 256, 64, torch.float32, "ieee")[0][2] <= 32


def test_a_measured_tile_is_taken_by_calls_of_about_its_size(monkeypatch):
    taken, other = (128, 64, 64, 4, 3), tile(8, 256, 128)[0]
    key = winners.key(winners.SUM, tiles.NARROW, last=True, pixels=8 * 128**2, inner=256, outer=256)
    monkeypatch.setitem(winners.MEASURED, key, taken)
    assert tile(8, 256, 128)[0] == other  # of another chip
    chip = pretended_gpu.PROPERTIES
    monkeypatch.setattr(winners, "CHIP", (chip.major, chip.minor, chip.multi_processor_count))
    for sizes in ((8, 256, 128), (8, 136, 100)):
        assert tile(*sizes)[0] == list(taken[:3])
    assert tile(8, 256, 64)[0] != list(taken[:3])
    assert tile(8, 256, 128, torch.float32)[0] != list(taken[:3])
    monkeypatch.setitem(winners.MEASURED, key, (1, 2, 3, 4, 5))  # which is no tile any more
    assert tile(8, 256, 128)[0] == other


def test_no_tile_needs_more_shared_memory_than_the_chip_has(monkeypatch):
    small = type("Chip", (), {"major": 8, "multi_processor_count": 132, "shared_memory_per_block_optin": 99 * 2**10})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: small)
    assert tile(8, 256, 128)[0] == [128, 128, 64] or tile(8, 256, 128)[0] == [64, 128, 64]
    for table, summed in (
        (cycles.SUM, "BLOCK_I"),
        (cycles.WITH_GRADIENT, "BLOCK_I"),
        (cycles.OF_WEIGHT, "BLOCK_P"),
    ):
        for how, each in table.items():
            size = 2 if how == tiles.NARROW else 4
            needed = [tiles._shared(tiles._meta(*one), summed, size) for one in each]
            assert max(needed) <= pretended_gpu.PROPERTIES.shared_memory_per_block_optin
            assert min(needed) <= small.shared_memory_per_block_optin


class Timed:
    """A launch that adds one to its second tensor."""

    def __init__(self, milliseconds):
        self.milliseconds, self.ran = milliseconds, 0

    def __call__(self, x, sums):
        self.ran += 1
        sums += 1


@pytest.mark.parametrize("capturing", [False, True])
def test_tiles_are_timed_where_that_is_asked_for(monkeypatch, capturing):
    """Once, never while a graph is captured, and what they add to is cleared."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    of = {"slow": Timed(3), "quick": Timed(1), "middling": Timed(2)}
    runs = iter(of.values())

    def do_bench(run, *_):
        run()
        return next(runs).milliseconds

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    assert tiles.fastest(of.__getitem__, list(of), [1]) is of["slow"]  # unasked, the first
    monkeypatch.setenv(tiles.TUNE, "1")
    run = tiles.fastest(of.__getitem__, list(of), [1])
    for times in (1, 2):
        sums = torch.zeros(2)
        run(None, sums)
        assert sums.tolist() == [1, 1]
        assert [each.ran for each in of.values()] == ([times, 0, 0] if capturing else [1, 1 + times, 1])


def test_no_shipped_tile_spills():
    """As the committed table says, which `python -m benchmarks.sm90` wrote."""
    with sm90.TABLE.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 60
    programs = {(row["call"], row["shape"]): int(row["programs"]) for row in rows}
    assert programs["gaussian_kernel2d", "c128-64x64-k3"] >= 256
    for row in rows:
        assert (int(row["boxes"]) > 0) == row["call"].endswith("by boxes"), row
        assert int(row["spilled"]) == 0, row
        assert int(row["registers"]) <= 255
        assert (int(row["matrix"]) > 0) == row["kernel"].startswith("dot"), row
