"""The Triton kernels compiled for a GPU that is not there."""

import pretended_gpu
import pytest
import torch
from interpreted import INTERPRETED, triton
from oracle import Case
from triton_calls import LAYOUTS, calls, run

from pac_ops.backends import triton as backend
from pac_ops.backends.triton import launch
from pac_ops.enlargement import Enlargement

pytestmark = [
    pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION"),
    pytest.mark.usefixtures("poisoned"),
]


@pytest.fixture
def compiled(monkeypatch):
    """Launches compile their kernel and do no more. Names and code of the compiled."""
    compile_and_run, kernels = triton.runtime.jit.JITFunction.run, []

    def compile_only(self, *args, warmup, **kwargs):
        kernel = compile_and_run(self, *args, warmup=True, **kwargs)
        kernels.append((self.fn.__qualname__, kernel.asm["ptx"]))
        return kernel

    pretended_gpu.pretend(monkeypatch)
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
    monkeypatch.setattr(launch, "PLANS", {})
    return kernels


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.skipif(torch.cuda.is_available(), reason="here they run")
@pytest.mark.parametrize(
    "operator",
    ["pacconv2d", "pacconv2d, depthwise", "pacpool2d, channel-wise", "squared_distance2d"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("pacconv_transpose2d", "pacpool2d")],
)
def test_kernels_compile_for_a_gpu(operator, compiled):
    """For channels side by side; matrix products on Hopper's matrix units."""
    groups = 64 if operator.endswith("depthwise") else 1
    case = Case(channels=64, out_channels=64, guide_channels=16, height=32, width=32, groups=groups)
    for name, arguments in calls(operator.removesuffix(", depthwise"), case, torch.bfloat16):
        laid = [LAYOUTS["channels last"](x) if getattr(x, "ndim", 0) == 4 else x for x in arguments]
        run(backend, name, laid)
    assert len(compiled) >= 2
    assert all("wgmma" in code for kernel, code in compiled if kernel.endswith("dot_kernel"))


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.skipif(torch.cuda.is_available(), reason="here they run")
def test_kernels_of_enlargement_compile_for_a_gpu(compiled):
    where = Enlargement(None, False, 2)
    coarse, fine = (torch.empty(1, 3, n, n, dtype=torch.bfloat16) for n in (8, 16))
    kernel = torch.empty(1, 1, 2, 2, 16, 16)
    backend.pacresize2d(coarse, kernel, where)
    backend.pacresize2d_backward(fine, coarse, kernel, where, (True, True))
    backend.resize_distance2d_backward(kernel, fine, coarse, where)
    backend.guided_resize2d(coarse, fine, coarse, where, 2.0, True)
    backend.guided_resize2d(coarse, fine, coarse, where, torch.tensor(2.0), False)
    assert len(compiled) == 7
