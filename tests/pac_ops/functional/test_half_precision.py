"""Every public operator in float16 and bfloat16, against float64 on the same rounded inputs: outputs and gradients.

What is narrow going in is exact in float64. All sums are float32 or wider, so what remains is to round each result to
the dtype it comes in, by half a unit in the last place of that very value; and the sums' own roundings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from oracle import TOLERANCE

import pac_ops
from pac_ops import area
from pac_ops.backends.choose import why_not
from pac_ops.backends.native import half

DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """An operator, and the shapes of its tensors.

    Its output and their gradients are rounded once, each value by half its own unit. What is named in `rounded` is
    made of several that were rounded each, of which this many, of half the largest value's unit, may add up.
    """

    run: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    rounded: dict[str, int] = field(default_factory=dict)


IMAGE, WEIGHT, GUIDE, FINE = (2, 4, 7, 6), (6, 4, 3, 3), (2, 3, 7, 6), (2, 3, 15, 13)


def kernel(guide, size=3, **options):
    return pac_ops.packernel2d(guide, None, size, padding=1, **options)[0]


def convolved(v, guide, weight, bias, **options):
    return pac_ops.pacconv2d(v, kernel(guide), weight, bias, 1, 1, **options)


def enlarged(**options):
    return Row(
        lambda v, guide, scale: pac_ops.pacresize2d(v, guide, scale=scale, **options),
        {"v": IMAGE, "guide": FINE, "scale": ()},
        rounded={"guide": 3},  # the guide's own, its average's, and their sum
    )


def layer(make, shapes, **more):
    """A layer, called with the tensors in their order; its parameters are of their dtype."""

    def run(**tensors):
        torch.manual_seed(0)
        dtype = next(iter(tensors.values())).dtype
        made = make().bfloat16().half().to(dtype)  # parameters that every dtype holds exactly
        return made(*tensors.values())

    return Row(run, shapes, **more)


HOLES = torch.ones(2, 1, 7, 6)
HOLES[:, :, 2:4, 1:5] = 0


class _Crf(pac_ops.PacCRF):
    def forward(self, v, guide):
        return super().forward(v, [guide, guide])


TABLE = {
    "distance": Row(lambda guide: pac_ops.squared_distance2d(guide, 3, 1, 1), {"guide": GUIDE}),
    "distance, many channels": Row(lambda guide: pac_ops.squared_distance2d(guide, 3), {"guide": (1, 300, 5, 4)}),
    "kernel": Row(kernel, {"guide": GUIDE}),
    "kernel, normalised": Row(lambda guide: kernel(guide, normalize_kernel=True), {"guide": GUIDE}),
    "kernel, inverse": Row(
        lambda guide, inv_alpha, inv_lambda: kernel(
            guide, kernel_type="inv_0.1_0.5_asym", inv_alpha=inv_alpha, inv_lambda=inv_lambda
        ),
        {"guide": GUIDE, "inv_alpha": (1,), "inv_lambda": (1,)},
        rounded={"guide": 4},  # the centres' own is a view of the guide, rounded before it is added to the taps'
    ),
    "kernel, smoothed": Row(
        lambda guide: kernel(guide, smooth_kernel_type="average_3"), {"guide": GUIDE}, rounded={"guide": 3}
    ),
    "kernel, one a channel": Row(lambda guide: kernel(guide, channel_wise=True), {"guide": GUIDE}),
    "kernel, transposed": Row(
        lambda guide: kernel(guide, stride=2, output_padding=1, transposed=True), {"guide": (2, 3, 8, 6)}
    ),
    "convolution": Row(convolved, {"v": IMAGE, "guide": GUIDE, "weight": WEIGHT, "bias": (6,)}),
    "convolution, depthwise": Row(
        lambda **x: convolved(**x, groups=4), {"v": IMAGE, "guide": GUIDE, "weight": (4, 1, 3, 3), "bias": (4,)}
    ),
    "convolution, many channels": Row(
        convolved, {"v": (1, 200, 6, 5), "guide": (1, 3, 6, 5), "weight": (3, 200, 3, 3), "bias": (3,)}
    ),
    "convolution, shared": Row(
        lambda **x: convolved(**x, shared_filters=True),
        {"v": IMAGE, "guide": GUIDE, "weight": (1, 1, 3, 3), "bias": (4,)},
        rounded={"output": 2},  # the sum, and then with the bias
    ),
    "transposed convolution": Row(
        lambda v, guide, weight, bias: pac_ops.pacconv_transpose2d(
            v, kernel(guide, stride=2, output_padding=1, transposed=True), weight, bias, 2, 1, 1
        ),
        {"v": IMAGE, "guide": (2, 3, 14, 12), "weight": (4, 5, 3, 3), "bias": (5,)},
    ),
    "pooling": Row(lambda v, guide: pac_ops.pacpool2d(v, kernel(guide), 3, 1, 1), {"v": IMAGE, "guide": GUIDE}),
    "pooling, one a channel": Row(
        lambda v, guide: pac_ops.pacpool2d(v, kernel(guide, channel_wise=True), 3, 1, 1),
        {"v": IMAGE, "guide": IMAGE},
    ),
    "detail-preserving pooling": Row(
        lambda v: pac_ops.detail_preserving_pool2d(v), {"v": (2, 4, 8, 6)}, rounded={"output": 4, "v": 8}
    ),
    "area average": Row(lambda image: area.area_average2d(image, (3, 4)), {"image": FINE}),
    "enlargement's distance": Row(
        lambda guide: pac_ops.resize_distance2d(guide, area.area_average2d(guide, (7, 6))),
        {"guide": FINE},
        rounded={"guide": 3},
    ),
    "enlargement": enlarged(),
    "enlargement, wide": enlarged(footprint=4),
    "enlargement, corners aligned": enlarged(align_corners=True),
    "enlargement by a factor": enlarged(scale_factor=(2.2, 2.3)),
    "joint bilateral enlargement": Row(
        lambda v, guide: pac_ops.joint_bilateral_upsample(v, guide, 1.0), {"v": IMAGE, "guide": FINE}
    ),
    "bilateral filter": Row(
        lambda v: pac_ops.bilateral_filter(v, 3, 1.0, 1.0),
        {"v": IMAGE},
        rounded={"v": 4},  # a pixel's own and its mirror images', their sum, and the guide's
    ),
    "joint bilateral filter": Row(
        lambda v, guide: pac_ops.joint_bilateral_filter(v, guide, 3, 1.0, 1.0),
        {"v": IMAGE, "guide": GUIDE},
        rounded={"v": 2},
    ),
    "dynamic filter": Row(
        lambda v, filters: pac_ops.dynamic_filter2d(v, filters, 3), {"v": IMAGE, "filters": (2, 9, 7, 6)}
    ),
    "kernel, masked": Row(lambda guide: pac_ops.packernel2d(guide, HOLES, 3, padding=1)[0], {"guide": GUIDE}),
    "kernel, masked afterwards": Row(
        lambda kernel: pac_ops.mask_kernel2d(kernel, HOLES, padding=1)[0], {"kernel": (2, 1, 3, 3, 7, 6)}
    ),
    "enlargement's weights": Row(
        lambda distance: pac_ops.resize_kernel2d(distance, 2, scale=1.7), {"distance": (2, 1, 2, 2, 5, 7)}
    ),
    # Two steps, in each of which Q, what is pooled, passed on, enlarged and added are rounded to the logits' dtype.
    "PacCRF": layer(
        lambda: _Crf(4, 2, pairwise_kernels=[{"kernel_size": 5, "blur": 2}, {"compat_type": "potts"}]),
        {"v": IMAGE, "guide": GUIDE},
        rounded={"output": 10, "v": 20, "guide": 20},
    ),
    "refine": Row(
        lambda logits, image: pac_ops.refine(logits, 64 * image),
        {"logits": (1, 4, 7, 6), "image": (1, 3, 7, 6)},
        rounded={"output": 10, "logits": 40, "image": 40},
    ),
    "PacConv2d": layer(lambda: pac_ops.PacConv2d(4, 5, 3, padding=1), {"v": IMAGE, "guide": GUIDE}),
    "PacConv2d, inverse": layer(
        lambda: pac_ops.PacConv2d(4, 5, 3, padding=1, kernel_type="inv_0.5_1", smooth_kernel_type="full_3"),
        {"v": IMAGE, "guide": GUIDE},
        rounded={"guide": 3},
    ),
    "PacConvTranspose2d": layer(
        lambda: pac_ops.PacConvTranspose2d(4, 5, 3, 2, 1, 1), {"v": IMAGE, "guide": (2, 3, 14, 12)}
    ),
    "PacPool2d": layer(lambda: pac_ops.PacPool2d(3, padding=1), {"v": IMAGE, "guide": GUIDE}),
    "PacResize2d": layer(
        lambda: pac_ops.PacResize2d(scale=0.7, learn_scale=True),
        {"v": IMAGE, "guide": FINE},
        rounded={"guide": 3},
    ),
}


def rounded(shapes, dtype):
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    # What looks like an image and like logits: of some size, and not centred.
    return {name: (2 * x - 0.3 if x.dim() else x + 0.5).to(dtype) for name, x in made.items()}


def results(row, tensors, grad=None):
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    out = row.run(**leaves)
    grad = (
        torch.linspace(-1, 1.5, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
        if grad is None
        else grad
    )
    out.backward(grad.to(out.dtype))
    return out.detach(), {name: x.grad for name, x in leaves.items()}, grad


def check(what, actual, expected, roundings):
    unit = torch.finfo(actual.dtype).eps / 2
    largest = expected.abs().max()
    allowed = unit * expected.abs() if roundings is None else roundings * unit * largest
    allowed = allowed + TOLERANCE[torch.float32] * largest + 1e-30  # where nothing else, 0 is 0
    excess = ((actual.double() - expected).abs() / allowed).max().item()
    assert excess <= 1, f"{what} is off by {excess:.2f} times what rounding explains"


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["native", "cpu", "reference"])
def test_outputs_and_gradients(backend, dtype, name, monkeypatch):
    if backend == "native" and (reason := why_not("native", torch.zeros((), dtype=dtype))):
        pytest.skip(reason)
    monkeypatch.setattr(half, "has_bfloat16", lambda: False)  # their products are rounded: see the next test
    row = TABLE[name]
    tensors = rounded(row.shapes, dtype)
    with pac_ops.use_backend(backend):
        out, gradients, grad = results(row, tensors)
    with pac_ops.use_backend("reference"):
        expected, exact, _ = results(row, {k: x.double() for k, x in tensors.items()}, grad.double())
    check("the output", out, expected, row.rounded.get("output"))
    for key, value in gradients.items():
        assert value.dtype == dtype
        check(f"the gradient of {key}", value, exact[key], row.rounded.get(key))


@pytest.mark.skipif(
    not half.has_bfloat16(), reason="this CPU has no instructions for bfloat16, or PyTorch avoids them"
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("channels", [(3, 9), (150, 21), (15, 402)], ids=str)
def test_instructions_for_bfloat16_round_products_with_k_and_nothing_else(channels, groups, transposed):
    """Half a unit of each product, and so of a sum's norm; the results are rounded once more."""
    inputs, outputs = channels
    weight = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    fine = (13, 77) if transposed else (7, 39)
    shapes = {"v": (2, inputs, 7, 39), "k": (2, 1, 3, 3, *fine), "weight": (*weight, 3, 3), "bias": (outputs,)}
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made |= {name: made[name].bfloat16() for name in ("v", "weight", "bias")}
    options = (2, 1, 0, groups) if transposed else (1, 1, 1, groups)
    run = pac_ops.pacconv_transpose2d if transposed else pac_ops.pacconv2d
    grad = torch.randn(2, outputs, *fine, generator=generator).bfloat16()

    def results(tensors, backend):
        leaves = [x.clone().requires_grad_() for x in tensors.values()]
        with pac_ops.use_backend(backend):
            out = run(*leaves, *options)
            return out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))

    exact = results({name: x.double() for name, x in made.items()}, "reference")
    unit = torch.finfo(torch.bfloat16).eps / 2
    for name, actual, expected in zip(("output", *shapes), results(made, "native"), exact, strict=True):
        error = ((actual.double() - expected).norm() / expected.norm()).item()
        # K's gradient stays float32, and neither it nor those of input and bias have K in a product
        assert error <= {"output": 1, "v": 0.7, "k": 1e-3, "weight": 1, "bias": 0.7}[name] * unit, name
        assert error > 0 or name == "bias"
    assert torch.equal(results(made, "native")[0], results(made, "native")[0])
