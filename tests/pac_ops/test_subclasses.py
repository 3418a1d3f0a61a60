"""Tensors of subclasses: operators take those that the plain layer takes, and give back what it gives back."""

import pytest
import torch
import torch.nn.functional as F
from kinds import KINDS, assert_same
from oracle import pairs

import pac_ops

VALUES = {
    "v": (2, 3, 8, 6),
    "f": (2, 2, 8, 6),
    "fine": (2, 2, 16, 12),
    "w": (4, 3, 3, 3),
    "wt": (3, 4, 3, 3),
}


def pooled(v, f, **options):
    return pac_ops.pacpool2d(v, pac_ops.packernel2d(f, None, 3, 2, 1, **options)[0], 3, 2, 1)


# An operator, and the plain layer with what it shares with it: of a plain guide, for its class is not the output's.
LAYERS = {
    "convolution": (
        lambda v, f, w, **_: pac_ops.pacconv2d(v, pac_ops.packernel2d(f, padding=1)[0], w, None, 1, 1),
        lambda v, w, **_: F.conv2d(v, w, None, 1, 1),
    ),
    "shared filter": (
        lambda v, f, w, **_: pac_ops.pacconv2d(
            v, pac_ops.packernel2d(f, padding=1)[0], w[:1, :1], None, 1, 1, shared_filters=True
        ),
        lambda v, w, **_: F.conv2d(v, w, None, 1, 1),
    ),
    "transposed convolution": (
        lambda v, fine, wt, **_: pac_ops.pacconv_transpose2d(
            v, pac_ops.packernel2d(fine, None, 3, 2, 1, 1, transposed=True)[0], wt, None, 2, 1, 1
        ),
        lambda v, wt, **_: F.conv_transpose2d(v, wt, None, 2, 1, 1),
    ),
    "pooling": (lambda v, f, **_: pooled(v, f), lambda v, **_: F.avg_pool2d(v, 3, 2, 1)),
    "enlargement": (
        lambda v, fine, **_: pac_ops.pacresize2d(v, fine),
        lambda v, **_: F.interpolate(v, scale_factor=2, mode="bilinear"),
    ),
}
# Those that no plain layer corresponds to: they run, whatever the class of what they give.
OTHERS = {
    "distance": lambda f, **_: pac_ops.squared_distance2d(f, 3, 1, 1),
    "kernel": lambda f, **_: pac_ops.packernel2d(
        f, None, padding=1, kernel_type="inv_0.1_0.5_asym", smooth_kernel_type="gaussian", normalize_kernel=True
    )[0],
    "masked kernel": lambda f, **_: pac_ops.packernel2d(f, f[:, :1], padding=1)[0],
    "detail-preserving pooling": lambda v, **_: pac_ops.detail_preserving_pool2d(v),
    "joint bilateral filter": lambda v, f, **_: pac_ops.joint_bilateral_filter(v, f, 3, 0.3, 1.0),
    "joint bilateral enlargement": lambda v, fine, **_: pac_ops.joint_bilateral_upsample(v, fine, 0.3),
    "labels": lambda v, fine, **_: pac_ops.pacresize2d_labels(v.detach(), fine.detach()),
    "refine": lambda v, **_: pac_ops.refine(v, 64 * v),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def tensors(dtype):
    return {name: torch.rand(shape, dtype=dtype) for name, shape in VALUES.items()}


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float32]))
@pytest.mark.parametrize("name", LAYERS)
def test_the_class_is_that_of_the_plain_layer(name, backend, dtype, kind):
    run, plain = LAYERS[name]
    values = tensors(dtype)
    with pac_ops.use_backend(backend):
        for wrapped in ({"v"}, {"w", "wt"}):
            there = {k: kind(x) if k in wrapped else x for k, x in values.items()}
            out = run(**there)
            assert_same(out, plain(**there), run(**values))


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float32]))
@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_all_of_a_subclass_with_gradients(name, backend, dtype, kind):
    run = LAYERS[name][0] if name in LAYERS else OTHERS[name]
    values = tensors(dtype)
    with pac_ops.use_backend(backend):
        leaves, there = ({k: make(x).requires_grad_() for k, x in values.items()} for make in (torch.clone, kind))
        expected, out = run(**leaves), run(**there)
        torch.testing.assert_close(out.as_subclass(torch.Tensor), expected)
        if not expected.requires_grad:
            return
        expected.square().sum().backward()
        out.square().sum().backward()
    for key, leaf in leaves.items():
        if leaf.grad is not None:
            torch.testing.assert_close(there[key].grad.as_subclass(torch.Tensor), leaf.grad)
