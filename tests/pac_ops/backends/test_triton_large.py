"""Sizes that only a GPU is fast enough for, and what only a GPU has."""

import pytest
import torch
from oracle import Case, assert_close
from triton_calls import LAYOUTS, OPERATORS, calls, on, on_gpu, run

from pac_ops import PacConv2d
from pac_ops.backends import reference
from pac_ops.backends import triton as backend
from pac_ops.geometry import Window

pytestmark = [
    pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION"),
    pytest.mark.usefixtures("poisoned"),
]


LARGE = [
    Case(channels=64, out_channels=96, guide_channels=70, height=33, width=47),
    Case(
        channels=130, out_channels=257, height=29, width=31, kernel_size=(5, 5), padding=(32, 32), dilation=(16, 16)
    ),
    Case(channels=96, out_channels=96, groups=96, height=40, width=41, kernel_size=(7, 7), padding=(3, 3)),
    Case(channels=512, out_channels=512, groups=32, height=17, width=33, stride=(2, 2)),
    Case(batch=2, channels=256, out_channels=256, guide_channels=128, height=64, width=64),
]


@on_gpu
@pytest.mark.usefixtures("in_full_float32")
@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_large(operator, case):
    check_large(operator, case, {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2})


def check_large(operator, case, bounds):
    """By the norm of the error: sums here are of up to 10^5 products, and the oracle runs on the GPU in float64."""
    for dtype, bound in bounds.items():
        for name, arguments in calls(operator, case, dtype):
            given = on("cuda", arguments)
            expected = run(reference, name, tuple(x.double() if isinstance(x, torch.Tensor) else x for x in given))
            for layout in (lambda x: x, LAYOUTS["channels last"]):
                laid = tuple(layout(x) if isinstance(x, torch.Tensor) and x.dim() == 4 else x for x in given)
                for n, (a, e) in enumerate(zip(run(backend, name, laid), expected, strict=True)):
                    error = ((a.double() - e).norm() / e.norm().clamp_min(1e-30)).item()
                    assert error <= bound, f"{name} {n} {dtype}: {error:.2e}"  # NaN is not <= anything


@on_gpu
@pytest.mark.usefixtures("in_full_float32")
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_runs_the_launches(dynamic):
    """And times their tile sizes itself, on the first run, which leaves nothing behind either."""
    layer = PacConv2d(64, 64, 3, padding=1).cuda()
    x, guide = (torch.randn(2, c, 32, 32, device="cuda", requires_grad=True) for c in (64, 16))
    leaves = [x, guide, *layer.parameters()]

    def output_and_gradients(run):
        out = run(x, guide / 4)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    expected = output_and_gradients(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    for _ in range(2):
        for n, (a, e) in enumerate(zip(output_and_gradients(compiled), expected, strict=True)):
            assert ((a - e).norm() / e.norm()).item() <= 1e-5, n


@on_gpu
def test_tf32_where_convolutions_may(monkeypatch):
    case = Case(channels=128, out_channels=128, height=32, width=32)
    (name, arguments), _ = calls("pacconv2d", case, torch.float32)
    given = on("cuda", arguments)
    (exact,) = run(reference, name, tuple(x.double() if isinstance(x, torch.Tensor) else x for x in given))
    errors = {}
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        (out,) = run(backend, name, given)
        errors[allowed] = ((out - exact).norm() / exact.norm()).item()
    assert errors[False] < 1e-6 < errors[True] < 1e-3, errors


@on_gpu
def test_more_than_2_to_31_elements():
    """Offsets beyond 32 bits, for real: 4 GiB of input."""
    x = torch.randn(1, 32, 8200, 8200, device="cuda").to(torch.bfloat16)
    assert x.numel() > 2**31
    k = torch.ones(1, 1, 1, 1, 8200, 8200, device="cuda")
    weight = torch.randn(16, 32, 1, 1, device="cuda").to(torch.bfloat16)
    out = backend.pacconv2d(x, k, weight, None, Window((1, 1)), 1)
    expected = torch.nn.functional.conv2d(x[:, :, -8:].double(), weight.double())
    assert_close(out[:, :, -8:].cpu(), expected.cpu(), torch.bfloat16, "last rows")
