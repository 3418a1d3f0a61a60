"""Convolutions whose tiles are boxes that descriptors of tensors read: under the interpreter, and compiled."""

import dataclasses

import pretended_gpu
import pytest
import torch
from interpreted import DEVICE, INTERPRETED
from oracle import assert_close
from triton_calls import LAYOUTS, calls, check_call, on, on_device, run, small

from benchmarks import sm90_calls
from benchmarks.stubbed import compiling
from pac_ops.backends import reference
from pac_ops.backends import triton as backend
from pac_ops.backends.triton import boxes, launch, split, tiles

pytestmark = [
    pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION"),
    pytest.mark.usefixtures("poisoned"),
]

TILE = {"BLOCK_P": 64, "BLOCK_O": 16, "BLOCK_I": 16, "BOX": 16}
CASES = [
    small(channels=40, out_channels=24, height=3, width=19, kernel_size=(3, 1), padding=(1, 0)),
    small(channels=64, out_channels=48, groups=2, kernel_size=(1, 3), padding=(0, 3), dilation=(1, 2), bias=False),
]


@pytest.fixture
def boxed(monkeypatch):
    """Tiles are boxes wherever they can be. The launches that were of boxes."""
    made = []

    class Noted(boxes.Boxed):
        def __call__(self, *tensors):
            made.append(tensors)
            super().__call__(*tensors)

    def products(*_, boxed=False):
        return [TILE if boxed else {k: v for k, v in TILE.items() if k != "BOX"}]

    monkeypatch.setattr(launch, "PLANS", {})
    monkeypatch.setattr(tiles, "products", products)
    monkeypatch.setattr(boxes, "Boxed", Noted)
    return made


@on_device
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "parts"), [(torch.bfloat16, 3), (torch.float16, 1)], ids=str)
def test_boxes(case, dtype, parts, boxed, monkeypatch):
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU fetches no boxes")
    monkeypatch.setattr(split, "splits", lambda *_: parts)
    name, arguments = calls("pacconv2d", case, dtype)[0]
    check_call(name, arguments, LAYOUTS["channels last"])
    assert len(boxed) == 1


@on_device
def test_where_they_cannot_be_read(boxed):
    """Other strides, sizes, dtypes: no box. And tensors that begin elsewhere are read through pointers."""
    case = CASES[0]
    changes = {"stride": (1, 2)}, {"channels": 36}, {"channels": 80, "groups": 2, "out_channels": 48}
    for changed in changes:
        name, arguments = calls("pacconv2d", dataclasses.replace(case, **changed), torch.float16)[0]
        check_call(name, arguments, LAYOUTS["channels last"])
    name, arguments = calls("pacconv2d", case, torch.float32)[0]
    check_call(name, arguments, LAYOUTS["channels last"])
    assert not boxed
    name, (x, *others) = calls("pacconv2d", case, torch.float16)[0]
    x, *others = on(DEVICE, (x, *others))
    apart = torch.empty(x.numel() + 1, dtype=x.dtype, device=DEVICE)[1:].view(*x.shape[:1], *x.shape[2:], -1)
    apart = apart.permute(0, 3, 1, 2).copy_(x)
    (expected,) = run(reference, name, [t.cpu().double() if isinstance(t, torch.Tensor) else t for t in (x, *others)])
    (actual,) = run(backend, name, (apart, *others))
    assert len(boxed) == 1
    assert_close(actual.cpu(), expected, torch.float16, "apart")


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.skipif(torch.cuda.is_available(), reason="here they run")
def test_boxes_are_fetched_as_such(monkeypatch):
    """By the chip's own instruction; and the tile is taken where it saves more than making descriptors takes."""
    pretended_gpu.pretend(monkeypatch)
    for batch, some in ((1, False), (8, True)):
        with compiling() as kernels:
            next(sm90_calls._convolution(batch, 64, 256, torch.bfloat16, last=True)).run()
        ((kernel, _, _),) = kernels
        assert ("cp.async.bulk.tensor" in kernel.asm["ptx"]) == some
        assert "wgmma" in kernel.asm["ptx"]
