"""The operators and layers with the Triton backend."""

import pytest
import torch
from interpreted import DEVICE, INTERPRETED
from oracle import assert_close
from triton_calls import on_device

import pac_ops
from pac_ops import PacConv2d, PacConvTranspose2d, PacPool2d
from pac_ops.backends import choose

pytestmark = [
    pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION"),
    pytest.mark.usefixtures("poisoned"),
]


def example(name, dtype, device):
    """A layer and its arguments: input and guide, both leaves."""
    torch.manual_seed(0)
    make = {
        "conv": lambda: PacConv2d(3, 4, (1, 3), padding=(0, 1)),
        "transposed": lambda: PacConvTranspose2d(
            3, 2, (3, 1), 2, (1, 0), 1, kernel_type="inv_0.2_0.7", normalize_kernel=True
        ),
        "pool": lambda: PacPool2d((1, 3), 1, (0, 1), kernel_type="inv_0.2_0.7_asym", smooth_kernel_type="gaussian"),
    }
    scale = 2 if name == "transposed" else 1
    leaves = torch.randn(1, 3, 2, 3), torch.randn(1, 2, 2 * scale, 3 * scale) / 2
    return make[name]().to(device, dtype), [x.to(device, dtype).requires_grad_() for x in leaves]


def gradients_of_two_orders(layer, leaves):
    leaves = [*leaves, *layer.parameters()]
    first = torch.autograd.grad(layer(*leaves[:2]).square().sum(), leaves, create_graph=True)
    return [*first, *torch.autograd.grad(sum(x.square().sum() for x in first), leaves)]


@on_device
@pytest.mark.parametrize("name", ["conv", "transposed", "pool"])
def test_gradients_of_layers_of_two_orders(name, monkeypatch):
    with pac_ops.use_backend("reference"):
        expected = gradients_of_two_orders(*example(name, torch.float64, DEVICE))
    monkeypatch.setenv("PAC_OPS_BACKEND", "triton")
    for n, (a, e) in enumerate(
        zip(gradients_of_two_orders(*example(name, torch.float32, DEVICE)), expected, strict=True)
    ):
        assert_close(a.detach(), e, 2e-4, f"{name} {n}", floor=1e-3)


@on_device
@pytest.mark.parametrize("how", ["compile", "vmap", "forward mode", "autocast"])
def test_paths_of_torch(how):
    layer, (x, guide) = example("conv", torch.float32, DEVICE)
    with pac_ops.use_backend("reference"):
        expected = layer(x, guide)
        if how == "forward mode":
            _, expected = torch.func.jvp(layer, (x, guide), (x, guide))
    with pac_ops.use_backend("triton"):
        if how == "compile":
            torch._dynamo.reset()
            actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, guide)
            actual.sum().backward()
            assert guide.grad.abs().sum() > 0
        elif how == "vmap":
            actual = torch.func.vmap(lambda x, f: layer(x[None], f[None])[0])(x, guide)
        elif how == "forward mode":
            _, actual = torch.func.jvp(layer, (x, guide), (x, guide))
        else:
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                actual = layer(x, guide)
            assert actual.dtype == torch.bfloat16
            actual.sum().backward()
            assert layer.weight.grad.dtype == guide.grad.dtype == torch.float32
    bound = 2e-2 if how == "autocast" else 1e-4
    assert_close(actual.detach().cpu(), expected.detach().double().cpu(), bound, how)


@pytest.mark.skipif(not INTERPRETED, reason="under the interpreter")
def test_the_interpreter_is_only_taken_by_name():
    x = torch.zeros(1)
    assert choose.backend_for(x) != "triton"
    assert pac_ops.explain(x).startswith("triton: no, on cpu tensors its kernels are interpreted, which takes asking")
    with pac_ops.use_backend("triton"):
        assert choose.backend_for(x) == "triton"
        assert pac_ops.explain(x).startswith("triton: chosen, asked for by name")
        with pytest.raises(ValueError, match="'triton' was asked for but cannot run: it has no torch.float64"):
            choose.backend_for(x.double())
