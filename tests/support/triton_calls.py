"""Calls of the Triton kernels, and the check of them against the float64 oracle."""

import dataclasses

import pytest
import torch
from interpreted import DEVICE, INTERPRETED
from oracle import Case, assert_close

from pac_ops.backends import reference
from pac_ops.backends import triton as backend
from pac_ops.geometry import Window

NO_GPU = "no GPU: test_every_kernel_under_the_interpreter runs this on the CPU"


def on_device(test):
    """Mark a test that runs on a GPU, or interpreted."""
    skip = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason=NO_GPU)
    return pytest.mark.gpu(pytest.mark.usefixtures("in_full_float32")(skip(test)))


def on_gpu(test):
    """Mark a test that runs on a GPU alone."""
    missing = INTERPRETED or not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="on the GPU itself")(test))


def calls(operator, case, dtype):
    """Name and arguments of an operator's function, and of its backward where it has one of its own."""
    generator = torch.Generator().manual_seed(1)

    def make(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    window, b, c, o, g = Window(*case.window), case.batch, case.channels, case.out_channels, case.guide_channels
    image, size = (case.height, case.width), window.output_size(case.height, case.width)
    bias = make(o) if case.bias else None
    if operator == "pacconv_transpose2d":
        size = window.transposed_size(*image, (window.stride[0] - 1, 0))
        if min(size) < 1:
            pytest.skip("this padding leaves a transposed convolution no output")
    k = make(b, 1, *window.kernel_size, *size, dtype=torch.float32)
    if operator == "pacconv2d":
        weight = make(o, c // case.groups, *window.kernel_size)
        shared = make(b, c, *image), k, weight
    elif operator == "pacconv_transpose2d":
        weight = make(c, o // case.groups, *window.kernel_size)
        shared = make(b, c, *image), k, weight
    elif operator == "pacpool2d":
        shared = make(b, c, *image), k
    elif operator == "pacpool2d, channel-wise":
        shared = make(b, c, *image), make(b, c, *window.kernel_size, *size, dtype=torch.float32)
    else:
        shared = (make(b, g, *image),)
    name = operator.split(",")[0]
    if name.startswith("pacconv"):
        grad = make(b, o, *size)
        return (name, (*shared, bias, window, case.groups)), (
            f"{name}_backward",
            (grad, *shared, window, case.groups, (True, True, True)),
        )
    if name == "pacpool2d":
        return (name, (*shared, window)), (f"{name}_backward", (make(b, c, *size), *shared, window, (True, True)))
    if name == "gaussian_kernel2d":  # its gradient is the distance's
        return ((name, (*shared, window)),)
    return (name, (*shared, window)), (f"{name}_backward", (k, *shared, window))


OPERATORS = [
    "pacconv2d",
    "pacconv_transpose2d",
    "pacpool2d",
    "pacpool2d, channel-wise",
    "squared_distance2d",
    "gaussian_kernel2d",
]


def run(module, name, arguments):
    """What a function returns, as a tuple."""
    result = getattr(module, name)(*arguments)
    return (result,) if isinstance(result, torch.Tensor) else result


def on(device, arguments):
    return tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments)


def check_call(name, arguments, layout=lambda x: x):
    exact = tuple(x.double() if isinstance(x, torch.Tensor) else x for x in arguments)
    expected = run(reference, name, exact)
    given = tuple(layout(x) if isinstance(x, torch.Tensor) and x.dim() == 4 else x for x in on(DEVICE, arguments))
    actual = run(backend, name, given)
    assert len(actual) == len(expected)
    for n, (a, e, like) in enumerate(zip(actual, expected, run(reference, name, arguments), strict=True)):
        assert (a is None) == (e is None)
        if a is not None:
            check_format(a, n, name, given)
            assert a.dtype == like.dtype
            # What is small beside 1 may be a difference of equal numbers.
            assert_close(a.cpu(), e, a.dtype, f"{name} {n}", floor=1e-3)
    return actual


def check_format(result, number, name, given):
    """Contiguous or channels-last, as the one of the arguments that it is like."""
    if result.dim() == 6:
        assert result.is_contiguous()
        return
    images = [x for x in given if isinstance(x, torch.Tensor) and x.dim() in (4, 6)]
    like = images[:1] + [x for x in images[2:3] if name.startswith("pacconv")]
    if name.endswith("_backward"):
        like = [images[1 + number]]
    last = any(x.stride(1) == 1 and x.stride(3) > 1 for x in like)
    assert result.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def check(operator, case, dtype, **kwargs):
    for name, arguments in calls(operator, case, dtype):
        check_call(name, arguments, **kwargs)


# With a batch of two, two tiles of pixels, the second partial; two of channels where there are more than four.
SMALL = Case(channels=2, out_channels=3, height=5, width=7, kernel_size=(1, 3), padding=(0, 1))


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


DIRECT = [
    small(kernel_size=(3, 3), padding=(1, 1)),
    small(bias=False, kernel_size=(1, 1), padding=(0, 0)),
    small(channels=4, out_channels=6, groups=2, padding=(1, 2), guide_channels=5),
    small(channels=5, out_channels=5, groups=5, kernel_size=(3, 1), padding=(1, 0), guide_channels=1),  # depthwise
    small(stride=(2, 2), kernel_size=(3, 1)),
    small(stride=(1, 3), dilation=(2, 2), channels=1, out_channels=2, height=4),
    small(
        stride=(4, 2), dilation=(2, 1), kernel_size=(3, 1), channels=1, out_channels=2, height=9
    ),  # taps of no phase
    small(padding=(3, 4), channels=1, out_channels=2),  # some windows see nothing
    small(dilation=(16, 16), padding=(0, 16), channels=1, out_channels=1, height=4, width=18),
    small(height=1, width=1, channels=1, guide_channels=0),
    small(batch=0),
]

PRODUCTS = [
    small(channels=20, out_channels=18, kernel_size=(3, 1), padding=(1, 0), guide_channels=9),
    small(channels=34, out_channels=32, groups=2, kernel_size=(1, 3), padding=(0, 1), stride=(1, 2), bias=False),
    small(channels=17, out_channels=16, kernel_size=(3, 1), padding=(0, 0), stride=(2, 1), dilation=(2, 1), height=8),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # every operator meets each, in either kind of kernel

LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second column of a wider tensor": lambda x: torch.stack([x, x + 1], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.mT.contiguous().mT,
}
