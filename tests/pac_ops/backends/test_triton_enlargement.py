"""The Triton kernels of guided enlargement against the float64 oracle: test_triton.py runs them where no GPU is."""

import pytest
import torch
import torch.nn.functional as F
from interpreted import DEVICE
from oracle import assert_close
from sampled import sampled
from triton_calls import on_device

import pac_ops
from pac_ops.backends import reference
from pac_ops.enlargement import Enlargement

# Enlargement, coarse and fine size, batch, channels, guide channels.
CALLS = [
    (Enlargement(None, False, 2), (4, 6), (7, 11), 2, 5, 3),
    (Enlargement((1.7, 1.7), False, 2), (4, 6), (6, 10), 1, 3, 1),
    (Enlargement(None, True, 4), (4, 6), (6, 11), 1, 1, 2),
    (Enlargement(None, False, 2), (4, 4), (4, 4), 1, 2, 2),
    (Enlargement(None, False, 6), (4, 3), (7, 5), 1, 2, 3),
    (Enlargement(None, False, 2, 1), (5, 3), (7, 6), 1, 2, 3),
    (Enlargement(None, False, 2), (1, 1), (3, 2), 1, 0, 2),
    (Enlargement(None, False, 2), (2, 1), (3, 2), 0, 1, 2),
]


@on_device
@pytest.mark.parametrize(
    ("call", "dtype"),
    sampled([(call, (torch.float32, torch.bfloat16)[(n + k) % 2]) for n, call in enumerate(CALLS) for k in (0, 1)]),
    ids=str,
)
def test_outputs_and_gradients(call, dtype):
    from pac_ops.backends import triton as triton_backend

    where, coarse, fine, b, c, g = call
    n = where.footprint

    def make(*shape, dtype=dtype):
        return torch.randn(shape).to(DEVICE, dtype)

    v, k, grad = make(b, c, *coarse), make(b, 1, n, n, *fine, dtype=torch.float32), make(b, c, *fine)
    guides = make(b, g, *fine), make(b, g, *coarse, dtype=torch.float32)  # an average is not rounded
    calls = {
        "pacresize2d": (v, k, where),
        "pacresize2d_backward": (grad, v, k, where, (True, True)),
        "resize_distance2d": (*guides, where),
        "resize_distance2d_backward": (k, *guides, where),
    }
    for name, arguments in calls.items():
        exact = [x.cpu().double() if isinstance(x, torch.Tensor) else x for x in arguments]
        expected, actual = (
            (out,) if isinstance(out, torch.Tensor) else out
            for out in (getattr(reference, name)(*exact), getattr(triton_backend, name)(*arguments))
        )
        for a, e in zip(actual, expected, strict=True):
            assert_close(a.cpu(), e, a.dtype, name, floor=1e-3)


@on_device
@pytest.mark.parametrize("laid", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"footprint": 2, "scale": torch.tensor(2.0)},
        {"footprint": 4, "residual": True},
        {"footprint": (4, 2), "residual": True, "scale": 1e10},
    ],
    ids=str,
)
def test_in_one_pass_where_nothing_is_recorded(options, laid):
    v, f = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 11, 9)
    wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    with pac_ops.use_backend("reference"):
        expected = pac_ops.pacresize2d(v.double(), f.double(), **wide)
    given = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    v, f = (x.to(DEVICE).contiguous(memory_format=laid) for x in (v, f))
    with pac_ops.use_backend("triton"), torch.no_grad():
        actual = pac_ops.pacresize2d(v, f, **given)
    assert actual.is_contiguous(memory_format=laid)
    assert_close(actual.cpu(), expected, torch.float32, str(options))


@on_device
@pytest.mark.parametrize("factors", [(1.1, 1.9), (1.1, 1.05)])
def test_an_axis_that_stays_as_long_is_as_in_interpolate_on_that_device(factors):
    """On a GPU PyTorch copies only where both axes stay as long."""
    v = torch.randn(1, 2, 5, 7).to(DEVICE)
    expected = F.interpolate(v, scale_factor=factors, mode="bilinear")
    f = torch.randn(1, 1, *expected.shape[2:]).to(DEVICE)
    with pac_ops.use_backend("triton"):
        actual = pac_ops.pacresize2d(v, f, scale_factor=factors, scale=0.0)
    assert_close(actual.cpu(), expected.cpu().double(), torch.float32, str(factors))
