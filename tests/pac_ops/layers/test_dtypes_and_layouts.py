"""Every layer at every dtype, memory layout and size."""

import copy

import pytest
import torch
from layer_cases import (
    CASES,
    NARROW,
    assert_all_close,
    changed,
    every_layer,
    every_learning_layer,
    everything,
    floating,
    output,
)
from oracle import PLAIN, TOLERANCE
from torch import Tensor

import pac_ops
from pac_ops import PacConv2d, PacConvTranspose2d, PacPool2d


def test_every_parameter_and_mask_is_in_the_table():
    """The table has what the tests below are to meet: learnable numbers of every kind, and a mask for every layer."""
    learnable = {name for case in CASES.values() for name, _ in case.layer().named_parameters()}
    assert learnable == {"weight", "bias", "inv_alpha", "inv_lambda", "smooth_kernel"}
    assert {type(case.layer()) for case in CASES.values() if case.masked} == {
        PacConv2d,
        PacConvTranspose2d,
        PacPool2d,
    }


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *NARROW], ids=str)
def test_dtypes(dtype, case):
    layer, arguments = case.layer().to(dtype), case.arguments(dtype=dtype)
    actual = everything(layer, arguments)
    assert {value.dtype for value in actual.values()} == {dtype}
    expected = everything(layer.double(), changed(arguments, floating(Tensor.double)))
    # Padding by reflection, a bias added to a pooling and gradients take a second rounding to a narrow dtype.
    assert_all_close(actual, expected, 2 * TOLERANCE[dtype])


def spy_on_kernels(monkeypatch):
    """The dtypes of every K that a layer makes from here on."""
    dtypes, make = [], pac_ops.layers.adapting.kernel_under

    def kernel_under(*arguments, **options):
        made = make(*arguments, **options)
        dtypes.append(made[0].dtype)
        return made

    monkeypatch.setattr(pac_ops.layers.adapting, "kernel_under", kernel_under)
    return dtypes


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(dtype, case, monkeypatch):
    kernels = spy_on_kernels(monkeypatch)
    layer, arguments = case.layer(), case.arguments(dtype=dtype)  # bfloat16 where another layer made it

    def run(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(*arguments)

    actual = everything(layer, arguments, run)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert actual["output"].dtype == case.stock()(arguments[0]).dtype
    assert kernels == [torch.float32]
    assert {actual[name].dtype for name in ("input", "guide")} == {dtype}
    assert {actual[name].dtype for name, _ in layer.named_parameters()} <= {torch.float32}
    expected = everything(layer.double(), changed(arguments, floating(Tensor.double)))
    for name, value in expected.items():
        # bfloat16 rounds at 0.004; in the gradient of a single number the terms half cancel.
        assert (actual[name] - value).norm() <= (0.02 if value.dim() else 0.05) * value.norm(), name


def every_second_column(x):
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


def with_the_batch_last(x):
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


LAYOUTS = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second column": every_second_column,
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": with_the_batch_last,
    "one image for all": lambda x: x[:1].expand(x.shape),
    "one channel for all": lambda x: x[:, :1].expand(x.shape),
    "one pixel for all": lambda x: x[..., :1, :1].expand(x.shape),
}


@every_layer
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, case):
    """Channels-last comes out as it came in, and all else contiguous."""
    layer = case.layer()
    laid_out = changed(case.arguments(), LAYOUTS[layout])
    assert not laid_out[0].is_contiguous()
    actual = everything(layer, laid_out)
    assert_all_close(actual, everything(layer, changed(laid_out, Tensor.contiguous)))
    last = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    assert actual["output"].is_contiguous(memory_format=last)


@every_learning_layer
def test_channels_last_layers(case):
    layer, arguments = case.layer(), case.arguments()
    expected = everything(layer, arguments)
    layer = layer.to(memory_format=torch.channels_last)
    assert_all_close(everything(layer, changed(arguments, LAYOUTS["channels-last"])), expected)


@pytest.mark.parametrize("make", [every_second_column, lambda k: k[..., :1, :1].expand(k.shape)])
def test_layouts_of_a_kernel_made_beforehand(make):
    layer, (x, guide, _, _) = CASES["conv"].layer(), CASES["conv"].arguments()
    kernel = make(pac_ops.packernel2d(guide, padding=1)[0])
    torch.testing.assert_close(layer(x, None, kernel), layer(x, None, kernel.contiguous()))
    for dtype in NARROW:  # K stays float32
        actual = copy.deepcopy(layer).to(dtype)(x.to(dtype), None, kernel)
        assert actual.dtype == dtype
        assert (actual - layer(x, None, kernel)).norm() < 0.02 * actual.norm()


@every_layer
def test_incoming_gradients_of_any_layout(case):
    layer, (x, guide, _, mask) = case.layer(), case.arguments()
    actual = []
    for layout in (Tensor.contiguous, *LAYOUTS.values()):
        leaves = x.clone().requires_grad_(), guide.clone().requires_grad_()
        out = output(layer(*leaves, None, mask))
        if layout is LAYOUTS["one pixel for all"]:
            actual.append(torch.autograd.grad(out.sum(), leaves))  # autograd's own expanded tensor
            expected = torch.autograd.grad(output(layer(*leaves, None, mask)), leaves, torch.ones_like(out))
        else:
            incoming = layout(torch.ones_like(out))
            actual.append(torch.autograd.grad(out, leaves, incoming))
    for gradients in actual:
        torch.testing.assert_close(gradients, expected)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_empty_batch(dtype, case):
    layer, arguments = case.layer().to(dtype), case.arguments(batch=0, dtype=dtype)
    actual = everything(layer, arguments)
    assert actual["output"].shape == case.stock()(arguments[0].float()).shape
    for name, leaf in zip(("input", "guide"), arguments, strict=False):
        assert actual[name].shape == leaf.shape
    for name, parameter in layer.named_parameters():
        assert torch.equal(actual[name], torch.zeros_like(parameter)), name


@pytest.mark.parametrize(("make", "size"), [(PacConv2d, 8), (PacConvTranspose2d, 16), (PacPool2d, 8)])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_default_dtype_has_no_effect(make, size, groups):
    """What a backend allocates is of its tensors' dtype, whatever new tensors are by default."""
    options = {} if make is PacPool2d else {"groups": groups}
    layer = make(3, 1, 1) if make is PacPool2d else make(4, 4, 3, size // 8, 1, **options)
    if make is PacConvTranspose2d:
        layer.output_padding = (1, 1)
    x, guide = torch.randn(1, 4, 8, 8, requires_grad=True), torch.randn(1, 3, size, size, requires_grad=True)

    def run():
        out = layer(x, guide)
        return out, *torch.autograd.grad(out.square().sum(), (x, guide, *layer.parameters()))

    expected = run()
    torch.set_default_dtype(torch.float64)
    try:
        actual = run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("backend", ["native", *PLAIN])
@pytest.mark.parametrize("make", [PacConv2d, PacConvTranspose2d])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_an_input_without_channels(make, backend):
    """Every sum is empty: only the bias remains."""
    layer = make(0, 4, 3, padding=1)
    x, guide = torch.zeros(2, 0, 5, 6, requires_grad=True), torch.randn(2, 3, 5, 6, requires_grad=True)
    with pac_ops.use_backend(backend):
        out = layer(x, guide)
        out.sum().backward()
    assert torch.equal(out, layer.bias[:, None, None].expand(2, 4, 5, 6))
    assert not guide.grad.any()


def test_pooling_without_channels():
    x, guide = torch.zeros(2, 0, 5, 6, requires_grad=True), torch.randn(2, 3, 5, 6)
    out = PacPool2d(3, None)(x, guide)
    out.sum().backward()
    assert out.shape == (2, 0, 1, 2)
    assert x.grad.shape == x.shape
