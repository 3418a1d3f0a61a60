"""What registration with torch.library promises: opcheck, gradients of three orders, autocast."""

import pytest
import torch
from operator_examples import CONFIGS, OPS, REGISTERED, arguments
from oracle import PLAIN
from torch.autograd import gradcheck, gradgradcheck

import pac_ops
from pac_ops import PacConv2d, PacConvTranspose2d, PacPool2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("op", REGISTERED)
def test_opcheck_every_op(op, config, dtype):
    # The slow checks, of autograd and of compilation, see the same code whatever the dtype and the plainer window.
    few = dtype == torch.bfloat16 or config != CONFIGS[-1]
    fewer = {"test_utils": ("test_schema", "test_faketensor")} if few else {}
    for call in arguments(op, config, (2, 5, 6), dtype):
        torch.library.opcheck(getattr(OPS, op).default, call, **fewer)


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("op", [name for name in REGISTERED if not name.endswith("_backward")])
def test_gradients_of_first_and_second_order(op, config, backend):
    for call in arguments(op, config, (1, 3, 4) if config[-1] == 1 else (2, 3, 2), torch.float64):
        tensors = [x for x in call if isinstance(x, torch.Tensor)]

        def run(*values, call=call):
            given = iter(values)
            return getattr(OPS, op).default(*(next(given) if isinstance(x, torch.Tensor) else x for x in call))

        with pac_ops.use_backend(backend):
            assert gradcheck(run, tensors)
            assert gradgradcheck(run, tensors, fast_mode=True)


LAYERS = {
    "conv": lambda: PacConv2d(2, 2, 3, padding=1),
    "conv, inverse, smoothed": lambda: PacConv2d(
        2, 1, 3, padding=1, kernel_type="inv_0.2_0.7_asym", smooth_kernel_type="full_3"
    ),
    "conv, shared, normalised": lambda: PacConv2d(2, 2, 3, padding=1, shared_filters=True, normalize_kernel=True),
    "transposed": lambda: PacConvTranspose2d(2, 2, 3, 2, 1, 1, groups=2),
    "transposed, inverse, normalised": lambda: PacConvTranspose2d(
        2, 1, 3, 2, 1, 1, kernel_type="inv_0.2_0.7", normalize_kernel=True
    ),
    "pooling": lambda: PacPool2d(3, 1, 1),
    "pooling, channel-wise, inverse": lambda: PacPool2d(
        3, 2, 1, kernel_type="inv_0.2_0.7", channel_wise=True, channels=2, smooth_kernel_type="full_3"
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_layers_of_first_and_second_order(name):
    """Of input, guide and every learnable number, with a mask that leaves out some pixels."""
    layer = LAYERS[name]().double()
    names, parameters = zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    size = 8 if isinstance(layer, PacConvTranspose2d) else 4
    guide = torch.randn(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 1, 4, 4) > 0.2

    def run(x, guide, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, guide, None, mask))[0]

    assert gradcheck(run, (x, guide, *parameters))
    assert gradgradcheck(run, (x, guide, *parameters), fast_mode=True)


def test_below_autograd_nothing_is_recorded():
    """As in the kernel of somebody's operator, whose gradient is that operator's affair."""
    layer, x, guide = PacConv2d(2, 2, 3), torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(1, 2, 5, 5)
    with torch._C._AutoDispatchBelowAutograd():
        out = layer(x, guide)
    assert out.grad_fn is None
    assert layer(x, guide).grad_fn is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_in_a_batch(dtype):
    """`is_grads_batched` maps over the backward of a call that was recorded outside."""
    layer = PacConv2d(2, 2, 3, padding=1, dtype=dtype)
    leaves = [torch.randn(2, 2, 5, 5, dtype=dtype, requires_grad=True) for _ in range(2)]
    out = layer(*leaves)
    leaves += layer.parameters()
    grads = torch.randn(3, *out.shape, dtype=dtype)
    batched = torch.autograd.grad(out, leaves, grads, is_grads_batched=True, retain_graph=True)
    for n, grad in enumerate(grads):
        for found, expected in zip(batched, torch.autograd.grad(out, leaves, grad, retain_graph=True), strict=True):
            torch.testing.assert_close(found[n], expected)


def test_gradient_of_third_order():
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 1, 3, 3, dtype=torch.float64)

    def total(x):  # x is input and guide at once
        return pac_ops.pacconv2d(x, pac_ops.packernel2d(x, padding=1)[0], w, padding=1).sum()

    def second(x):
        (first,) = torch.autograd.grad(total(x), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, (x,))


def example():
    torch.manual_seed(0)
    return PacConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 9, 8), torch.randn(2, 3, 9, 8)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_narrows_all_but_k(compiled):
    layer, x, f = example()
    torch._dynamo.reset()
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    expected = layer(x, f)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pac_ops.packernel2d(f.bfloat16())[0].dtype == torch.float32
        out = run(x, f)
        assert out.dtype == torch.bfloat16
        assert nn_conv_dtype(x) == torch.bfloat16  # as the stock convolution's
    assert (out.float() - expected).norm() / expected.norm() < 0.02
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def nn_conv_dtype(x):
    return torch.nn.Conv2d(4, 6, 3)(x).dtype


def test_autocast_leaves_float64_alone():
    layer, x, f = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.double()(x.double(), f.double()).dtype == torch.float64
