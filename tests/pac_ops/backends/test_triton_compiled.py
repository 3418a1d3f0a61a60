"""The Triton kernels compiled for a GPU that is not there."""

import pretended_gpu
import pytest
import torch
from interpreted import INTERPRETED, triton
from oracle import Case
from triton_calls import LAYOUTS, calls, run

from pac_ops.backends import triton as backend
from pac_ops.backends.triton import launch

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
    monkeypatch.setattr(launch, "_plans", {})
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
    assert all("wgmma" in code for kernel, code in compiled if kernel == "_dot_kernel")
