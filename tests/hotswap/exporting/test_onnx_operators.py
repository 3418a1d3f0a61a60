"""Enlargements of open sizes as ONNX has them: all options, at sizes that have nothing to do with the example's."""

import onnxruntime
import pytest
import torch
from sampled import sampled
from torch import nn

import pac_ops
from hotswap.exporting import onnx_program
from hotswap.exporting.program import exported_program

OPEN = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
SIZES = [(20, 26, 41, 57), (20, 26, 80, 104), (7, 9, 7, 40), (2, 2, 5, 3), (33, 17, 65, 33), (1, 30, 1, 90)]
HALF = torch.float16
CASES = {
    "footprint 2": {},
    "float64": {"dtype": torch.float64},
    "float16, bounded": {"dtype": HALF, "bounded": True, "footprint": 4, "residual": True},
    "tents of 8": {"footprint": 8},
    "steps": {"footprint": (6, 4, 2), "residual": True},
    "halvings": {"footprint": (4, 4, 2), "residual": True, "halvings": 2, "bounded": True},
    "aligned": {"align_corners": True, "footprint": (4, 4, 2), "residual": True, "halvings": 1},
    "a factor": {"scale_factor": (1.3, 2.0), "footprint": (4, 2)},
    "a guide of the map's size": {"coarse_guide": True, "footprint": (4, 2)},
}


class Enlarged(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = {"scale": 20.0} | options
        self.given = self.options.pop("coarse_guide", False)

    def forward(self, map, guide):
        coarse = guide[:, :, : map.shape[2], : map.shape[3]] if self.given else None
        return pac_ops.pacresize2d(map, guide, coarse_guide=coarse, **self.options)


@pytest.mark.parametrize("case", sampled(CASES))
@torch.no_grad()
def test_an_enlargement_is_right_at_every_size(case):
    """With guides of noise and a large scale, so that a place off by a rounding is seen."""
    generator = torch.Generator().manual_seed(0)
    options = dict(CASES[case])
    dtype, factor = options.pop("dtype", torch.float32), options.get("scale_factor")
    layer = Enlarged(options)

    def drawn(batch, *size):
        fine = size[2:] if factor is None else [int(n * x) for n, x in zip(size[:2], factor, strict=True)]
        return tuple(torch.rand(batch, 3, *n, generator=generator).to(dtype) for n in (size[:2], fine))

    example = drawn(2, 12, 14, 25, 31)
    program = exported_program(layer, example, (OPEN, OPEN), keep=True)
    assert sum("pac_ops_whole" in str(node.target) for node in program.graph.nodes) == 1
    file = onnx_program.model(program, example).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in SIZES:
        given = drawn(1, *size)
        expected = layer(*(x.double() for x in given))
        names = [x.name for x in session.get_inputs()]
        (found,) = session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
        assert torch.from_numpy(found).dtype == dtype
        gap = (torch.from_numpy(found) - expected).abs().max()
        assert gap < {torch.float64: 1e-10, HALF: 1e-3}.get(dtype, 3e-5), f"{size}: {gap:.1e}"
