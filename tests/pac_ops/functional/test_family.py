"""Every layer, option by option and in random combinations, against the spelt-out family: output, mask, gradients."""

from dataclasses import dataclass, replace

import pytest
import spelt_out
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import PLAIN, assert_close

import pac_ops
from pac_ops.adapting import kernel_type
from pac_ops.backends.choose import why_not
from pac_ops.geometry import Window

pytestmark = pytest.mark.filterwarnings("ignore:a 1x1 window")


@dataclass(frozen=True)
class Use:
    """One call of one layer."""

    op: str = "conv"  # conv, transpose or pool
    batch: int = 2
    channels: int = 4  # a multiple of groups
    out_channels: int = 6
    guide_channels: int = 3
    height: int = 7
    width: int = 6
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1
    bias: bool = True
    shared_filters: bool = False
    ceil_mode: bool = False
    channel_wise: bool = False
    kernel_type: str = "gaussian"
    smooth: str = "none"
    normalize: bool = False
    mask: str = "none"  # none, random, or zero: no pixel counts
    given: bool = False  # K made beforehand

    def __str__(self):
        default = Use()
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(default, k)]
        return ",".join(changed).replace(" ", "") or "default"

    def layer(self, seed):
        torch.manual_seed(seed)
        kernel = {
            "kernel_type": self.kernel_type,
            "smooth_kernel_type": self.smooth,
            "normalize_kernel": self.normalize,
            "dtype": torch.float64,
        }
        window = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        if self.op == "pool":
            learnable = self.channel_wise and not kernel_type(self.kernel_type).fixed
            kernel |= {"channel_wise": self.channel_wise, "channels": self.channels if learnable else None}
            return pac_ops.PacPool2d(self.kernel_size, **window, ceil_mode=self.ceil_mode, **kernel)
        out = self.channels if self.shared_filters else self.out_channels
        kernel |= {"groups": self.groups, "bias": self.bias, "shared_filters": self.shared_filters}
        if self.op == "conv":
            return pac_ops.PacConv2d(self.channels, out, self.kernel_size, **window, **kernel)
        window |= {"output_padding": self.output_padding}
        return pac_ops.PacConvTranspose2d(self.channels, out, self.kernel_size, **window, **kernel)

    def window(self):
        return Window(self.kernel_size, self.stride, self.padding, self.dilation)

    def extra(self):
        return self.window().ceil_padding(self.height, self.width) if self.ceil_mode else (0, 0)

    def output_size(self):
        if self.op == "transpose":
            return self.window().transposed_size(self.height, self.width, self.output_padding)
        extra = self.extra()
        return self.window().output_size(self.height + extra[0], self.width + extra[1])

    def tensors(self, layer, seed):
        """input, guide and mask, all float64, and the gradient that comes in."""
        generator = torch.Generator().manual_seed(seed)

        def make(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        ho, wo = self.output_size()
        size = (ho, wo) if self.op == "transpose" else (self.height, self.width)
        guides = self.channels if self.channel_wise else self.guide_channels
        out = {"conv": self.out_channels, "transpose": self.out_channels, "pool": self.channels}[self.op]
        mask = make(self.batch, 1, self.height, self.width) > {"none": 0, "random": 0.3, "zero": 1e9}[self.mask]
        return {
            "input": make(self.batch, self.channels, self.height, self.width),
            "guide": make(self.batch, guides, *size) / 2,
            "mask": None if self.mask == "none" else mask.double(),
            "grad": make(self.batch, self.channels if self.shared_filters else out, ho, wo),
        }

    def run(self, layer, x):
        if not self.given:
            return layer(x["input"], x["guide"], mask=x["mask"])
        plain = replace(self, normalize=False, mask="none")
        return layer(x["input"], None, spelt_out_kernel(plain, layer, x | {"mask": None})[0], x["mask"])

    def oracle(self, layer, x):
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation)
        kernel, output_mask = spelt_out_kernel(self, layer, x)
        if self.given and self.mask == "none":  # a kernel made beforehand is taken as it is
            kernel, _ = spelt_out_kernel(replace(self, normalize=False), layer, x)
        if self.op == "transpose":
            spaced = spelt_out.zeros_between(x["input"], *geometry, self.output_padding)
            seen = spelt_out.windows(spaced, self.kernel_size, dilation=self.dilation)
            weight = layer.weight.flip(2, 3) if self.shared_filters else spelt_out.turned(layer.weight, self.groups)
        else:
            extra = self.extra()
            padded = torch.nn.functional.pad(x["input"], (0, extra[1], 0, extra[0]))
            seen = spelt_out.windows(padded, *geometry)
            weight = None if self.op == "pool" else layer.weight
        if weight is None:
            return (seen * kernel).sum((2, 3)), output_mask
        return spelt_out.convolve(
            seen, kernel, weight, layer.bias, 0 if self.shared_filters else self.groups
        ), output_mask


def spelt_out_kernel(use, layer, x):
    extra_or_not = use.output_padding if use.op == "transpose" else None
    return spelt_out.packernel(
        x["guide"],
        x["mask"],
        (use.kernel_size, use.stride, use.padding, use.dilation, extra_or_not, use.extra()),
        kernel_type=use.kernel_type,
        smooth=spelt_out.smoothing(use.smooth, layer.smooth_kernel),
        alpha=layer.inv_alpha,
        lambda_=layer.inv_lambda,
        channel_wise=use.channel_wise,
        normalize=use.normalize,
        image_size=(use.height, use.width),
    )


def check(use, backend, seed=0):
    layer = use.layer(seed)
    x = use.tensors(layer, seed)
    for name in ("input", "guide"):
        x[name].requires_grad_()
    leaves = {"input": x["input"], "guide": x["guide"], **dict(layer.named_parameters())}
    expected, expected_mask = use.oracle(layer, x)
    wanted = torch.autograd.grad(expected, leaves.values(), x["grad"], allow_unused=True, materialize_grads=True)
    with pac_ops.use_backend(backend):
        actual = use.run(layer, x)
        actual, mask = actual if use.mask != "none" else (actual, None)
        found = torch.autograd.grad(actual, leaves.values(), x["grad"], allow_unused=True, materialize_grads=True)
    if use.mask != "none":
        assert torch.equal(mask, expected_mask)
    assert_close(actual.detach(), expected.detach(), HELD_TO, "output")
    for name, a, e in zip(leaves, found, wanted, strict=True):
        assert_close(a, e, HELD_TO, f"gradient of {name}", floor=0.1)


# (d + 1e-4)^(lambda/2 - 1) in the inverse kernels' gradients magnifies the rounding of d, 1e-16, up to 1e5 times.
HELD_TO = 1e-9

KINDS = {"conv": Use(), "transpose": Use(op="transpose", stride=(2, 2)), "pool": Use(op="pool", stride=(2, 1))}
OPTIONS = [
    {},
    {"kernel_size": (5, 3), "padding": (0, 2), "dilation": (1, 2)},
    {"stride": (3, 2), "dilation": (2, 1), "padding": (2, 0)},
    {"padding": (4, 3)},
    {"kernel_type": "inv_0.1_0.5"},
    {"kernel_type": "inv_0.2_-1_fixed"},
    {"kernel_type": "inv_1e-1_2_asym"},
    {"smooth": "gaussian"},
    {"smooth": "average_5", "padding": (3, 3)},
    {"smooth": "full_3", "stride": (2, 3)},
    {"smooth": "full_5", "kernel_type": "inv_0.1_0.7_asym_fixed", "normalize": True},
    {"normalize": True},
    {"normalize": True, "padding": (4, 4)},
    {"mask": "random"},
    {"mask": "random", "normalize": True, "padding": (2, 2)},
    {"mask": "zero", "normalize": True},
    {"mask": "zero"},
    {"given": True},
    {"given": True, "mask": "random"},
    {"given": True, "mask": "random", "normalize": True},
    {"guide_channels": 0},
    {"batch": 1, "height": 1, "width": 1},
]
CONV_OPTIONS = [{"groups": 2}, {"bias": False}, {"shared_filters": True}, {"shared_filters": True, "bias": False}]
EXTRA = {
    "conv": CONV_OPTIONS,
    "transpose": [
        *CONV_OPTIONS,
        {"output_padding": (1, 0)},
        {"output_padding": (0, 2), "stride": (1, 3), "mask": "random", "normalize": True},
        {"output_padding": (2, 1), "stride": (1, 1), "dilation": (3, 2)},
        {"padding": (2, 2), "kernel_size": (5, 5), "output_padding": (1, 1), "normalize": True},
    ],
    "pool": [
        {"channel_wise": True},
        {"channel_wise": True, "kernel_type": "inv_0.1_0.5", "normalize": True},
        {"channel_wise": True, "kernel_type": "inv_0.1_0.5_asym_fixed", "smooth": "gaussian"},
        {"channel_wise": True, "given": True, "mask": "random"},
        {"ceil_mode": True, "stride": (3, 2)},
        {"ceil_mode": True, "stride": (2, 2), "normalize": True},
        {"ceil_mode": True, "stride": (3, 3), "mask": "random"},
        {"ceil_mode": True, "stride": (3, 3), "mask": "random", "given": True, "normalize": True},
    ],
}
USES = [replace(use, **options) for op, use in KINDS.items() for options in [*OPTIONS, *EXTRA[op]]]


@pytest.mark.parametrize("use", USES, ids=str)
@pytest.mark.parametrize("backend", PLAIN)
def test_option_by_option(backend, use):
    check(use, backend)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def uses(draw):
    op = draw(st.sampled_from(["conv", "transpose", "pool"]))
    groups = draw(st.integers(1, 3))
    shared = op != "pool" and draw(st.booleans())
    channel_wise = op == "pool" and draw(st.booleans())
    alpha, power = draw(st.floats(0, 1)), draw(st.floats(-2, 2))
    inverse = (
        f"inv_{alpha:.3f}_{power:.3f}{draw(st.sampled_from(['', '_asym']))}{draw(st.sampled_from(['', '_fixed']))}"
    )
    use = Use(
        op=op,
        batch=draw(st.integers(0, 2)),
        channels=groups * draw(st.integers(1, 2)),
        out_channels=groups * draw(st.integers(1, 2)),
        guide_channels=draw(st.integers(0, 3)),
        height=draw(st.integers(1, 7)),
        width=draw(st.integers(1, 7)),
        kernel_size=draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 2)),
        stride=draw(pairs(1, 3)),
        padding=draw(pairs(0, 4)),
        dilation=draw(pairs(1, 3)),
        output_padding=draw(pairs(0, 2)) if op == "transpose" else (0, 0),
        groups=1 if shared else groups,
        bias=draw(st.booleans()),
        shared_filters=shared,
        ceil_mode=op == "pool" and draw(st.booleans()),
        channel_wise=channel_wise,
        kernel_type=draw(st.sampled_from(["gaussian", inverse])),
        smooth=draw(st.sampled_from(["none", "gaussian", "average_3", "full_3", "full_5"])),
        normalize=draw(st.booleans()),
        mask=draw(st.sampled_from(["none", "none", "random", "zero"])),
        given=draw(st.sampled_from([False, False, True])),
    )
    assume(min(use.output_size()) > 0)
    reaches = zip(use.output_padding, use.stride, use.dilation, strict=True)
    assume(all(e < s or e < d for e, s, d in reaches))
    return use


@settings(max_examples=500, deadline=None, derandomize=True)
@given(uses(), st.integers(0, 99))
def test_random_combinations(use, seed):
    check(use, "cpu", seed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=20_000, deadline=None)
@given(uses(), st.sampled_from(PLAIN), st.integers(0, 9999))
def test_many_random_combinations(use, backend, seed):
    check(use, backend, seed)


@pytest.mark.skipif(why_not("native", torch.zeros(())) is not None, reason=str(why_not("native", torch.zeros(()))))
@settings(max_examples=150, deadline=None, derandomize=True)
@given(uses(), st.integers(16, 50), st.integers(0, 99))
def test_random_combinations_compiled(use, width, seed):
    """The compiled kernels with K given in float64's precision, on rows wider than their vectors too."""
    use = replace(use, given=True, width=width if seed % 2 else use.width, mask="none")
    assume(min(use.output_size()) > 0)
    layer = use.layer(seed)
    x = use.tensors(layer, seed)
    rounded = {k: None if v is None else v.float() for k, v in x.items()}
    exact = {k: None if v is None else v.double() for k, v in rounded.items()}
    twin = use.layer(seed)
    twin.load_state_dict({k: v.float().double() for k, v in layer.state_dict().items()})
    with torch.no_grad():
        kernel, _ = spelt_out_kernel(replace(use, normalize=False), twin, exact)
    inputs = {"input": rounded["input"], "kernel": kernel.float()}
    inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    with pac_ops.use_backend("native"):
        actual = layer.float()(inputs["input"], None, inputs["kernel"])
    exactly = {name: value.detach().double().requires_grad_() for name, value in inputs.items()}
    with pac_ops.use_backend("reference"):
        expected = twin(exactly["input"], None, exactly["kernel"])
    assert_close(actual.detach(), use.oracle(twin, exact)[0].detach(), torch.float32, "output", floor=1e-3)
    gradient = torch.randn_like(actual)
    actual.backward(gradient)
    expected.backward(gradient.double())
    for name, value in inputs.items():
        assert_close(value.grad, exactly[name].grad, torch.float32, f"d{name}", floor=1e-3)
    for name, weight in layer.named_parameters():
        if weight.grad is not None:
            assert_close(weight.grad, twin.get_parameter(name).grad, torch.float32, f"d{name}", floor=1e-3)


@pytest.mark.parametrize("use", USES[::2], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrower_dtypes(dtype, use):
    """Rounded arguments, wide sums: what remains is the rounding of the result, and of K at 2^-24."""
    layer = use.layer(0)
    x = use.tensors(layer, 0)
    layer = layer.to(dtype)
    rounded = {k: v.to(dtype) if v is not None and k != "mask" else v for k, v in x.items()}
    exact = {k: v.double() if v is not None else None for k, v in rounded.items()}
    twin = use.layer(0)
    twin.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
    expected, _ = use.oracle(twin, exact)
    with torch.no_grad():
        actual = use.run(layer, rounded) if not use.given else use.run(layer, rounded | {"guide": exact["guide"]})
    actual = actual[0] if use.mask != "none" else actual
    assert actual.dtype == dtype
    # (d + 1e-4)^(lambda/2) magnifies float32's rounding of d where smoothing makes d a difference of near numbers.
    assert_close(actual, expected.detach(), torch.float32 if dtype == torch.float32 else dtype, "output")
