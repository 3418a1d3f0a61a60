"""The Triton kernels compiled for a GPU that is not there."""

import pretended_gpu
import pytest
import torch
from interpreted import INTERPRETED, triton
from oracle import Case
from triton_calls import DTYPES, LAYOUTS, calls, run

from pac_ops.backends import triton as backend
from pac_ops.backends.triton import gather, weight_gradient

pytestmark = [
    pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION"),
    pytest.mark.usefixtures("poisoned"),
]


@pytest.fixture
def compiled(monkeypatch):
    """Launches compile their kernel and do no more; tile sizes are timed, all alike. Names and code of the compiled."""
    compile_and_run, kernels = triton.runtime.jit.JITFunction.run, []

    def compile_only(self, *args, warmup, **kwargs):
        kernel = compile_and_run(self, *args, warmup=True, **kwargs)
        kernels.append((self.fn.__qualname__, kernel.asm["ptx"]))

    def timed(run, quantiles):
        run()
        return [1.0, 1.0, 1.0]

    pretended_gpu.pretend(monkeypatch)
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
    for module in (gather, weight_gradient):
        monkeypatch.setattr(module._DOT._tuner, "_do_bench", timed)
        monkeypatch.setattr(module._DOT._tuner, "cache", {})
    return kernels


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.skipif(torch.cuda.is_available(), reason="here they run")
@pytest.mark.parametrize(
    "operator",
    ["pacconv2d", "pacconv2d, depthwise", "pacpool2d, channel-wise", "squared_distance2d"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("pacconv_transpose2d", "pacpool2d")],
)
def test_kernels_compile_for_a_gpu(operator, compiled, monkeypatch):
    """With the default tiles, for channels side by side; matrix products on Hopper's matrix units."""
    for module in (gather, weight_gradient):
        monkeypatch.setattr(module._DOT, "_tuner", None)
    groups = 64 if operator.endswith("depthwise") else 1
    case = Case(channels=64, out_channels=64, guide_channels=16, height=32, width=32, groups=groups)
    for name, arguments in calls(operator.removesuffix(", depthwise"), case, torch.bfloat16):
        laid = [LAYOUTS["channels last"](x) if getattr(x, "ndim", 0) == 4 else x for x in arguments]
        run(backend, name, laid)
    assert len(compiled) >= 2
    assert all("wgmma" in code for kernel, code in compiled if kernel == "_dot_kernel")


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.skipif(torch.cuda.is_available(), reason="here they run")
@pytest.mark.parametrize(
    ("operator", "dtype", "most"),
    [
        ("pacconv2d", torch.bfloat16, 2),
        *(
            pytest.param(operator, dtype, None, marks=pytest.mark.slow)
            for operator in ("pacconv2d", "pacconv_transpose2d")
            for dtype in DTYPES
        ),
    ],
)
def test_tile_sizes_are_timed_and_kept(operator, dtype, most, compiled, monkeypatch):
    """The first call compiles each of the sizes and the second none."""
    _, (name, arguments) = calls(operator, Case(channels=64, out_channels=32, height=8, width=8), dtype)
    products = [module._DOT for module in (gather, weight_gradient)]
    for product in products:
        monkeypatch.setattr(product, "_metas", product._metas[:most])
    for _ in range(2):
        run(backend, name, arguments)
    tried = [len(product._tuner.configs_timings) for product in products]
    assert min(tried) >= 2
    assert [kernel for kernel, _ in compiled].count("_dot_kernel") == sum(tried) + 4
    assert [len(product._tuner.cache) for product in products] == [1, 1]
