"""The compiled CPU path, float32: `native.c`, built when the package is installed where there is a C compiler.

Convolution is an implicit matrix product, K applied to the taps as they are packed for it; pooling, depthwise
convolution and distances go row by row. Nothing is padded or copied beyond what a core's cache holds. A transposed
convolution is one ordinary convolution for each position modulo the stride. What it has no code for (backward passes,
distances from given centres) is `cpu`'s.
"""

import ctypes
import math
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from pac_ops import cpu
from pac_ops.cpu import (
    centred_distance2d,
    centred_distance2d_backward,
    pacconv2d_backward,
    pacconv_transpose2d_backward,
    pacpool2d_backward,
    squared_distance2d_backward,
)
from pac_ops.geometry import Window

__all__ = [
    "centred_distance2d",
    "centred_distance2d_backward",
    "pacconv2d",
    "pacconv2d_backward",
    "pacconv_transpose2d",
    "pacconv_transpose2d_backward",
    "pacpool2d",
    "pacpool2d_backward",
    "squared_distance2d",
    "squared_distance2d_backward",
    "why_not_built",
]

_PAIR = ctypes.c_int64 * 2


class _Window(ctypes.Structure):
    """`Window` of native.c: the shapes and the sliding window of one call."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("out_channels", "out_height", "out_width", "groups")),
        *((name, _PAIR) for name in ("kernel", "stride", "padding", "dilation")),
    ]


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    if not input.shape[1]:  # nothing to sum
        return cpu.pacconv2d(input, kernel, weight, bias, window, groups)
    input, kernel, weight = input.contiguous(), kernel.float().contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    ho, wo = kernel.shape[-2:]
    out = input.new_empty(input.shape[0], weight.shape[0], ho, wo)
    shapes = _shapes(input, out, window, groups)
    if weight.shape[1] == 1 and weight.shape[0] == groups:  # depthwise
        _run("pac_pooling", shapes, input, kernel, 1, weight, bias, out)
    else:
        _run("pac_convolution", shapes, input, kernel, weight, bias, out)
    return out


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv_transpose2d`.

    Output pixels whose positions are alike modulo the stride see input pixels under the same taps: each such set is
    an ordinary convolution of the input, with stride 1 and those taps.
    """
    ho, wo = kernel.shape[-2:]
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    out = input.new_empty(input.shape[0], turned.shape[0], ho, wo)
    rows, columns = (_phases(window, axis) for axis in (0, 1))
    for top, (taps_y, dilation_y, padding_y) in enumerate(rows):
        for left, (taps_x, dilation_x, padding_x) in enumerate(columns):
            phase = (slice(top, None, window.stride[0]), slice(left, None, window.stride[1]))
            part = out[:, :, phase[0], phase[1]]
            if not taps_y or not taps_x or not part.numel():
                part.copy_(torch.zeros(()) if bias is None else bias[:, None, None].expand_as(part))
                continue
            seen = Window((len(taps_y), len(taps_x)), (1, 1), (padding_y, padding_x), (dilation_y, dilation_x))
            k_ij = kernel[:, :, taps_y][:, :, :, taps_x][..., phase[0], phase[1]]
            filters = turned[:, :, [window.kernel_size[0] - 1 - t for t in taps_y]]
            filters = filters[..., [window.kernel_size[1] - 1 - t for t in taps_x]]
            part.copy_(pacconv2d(input, k_ij, filters, bias, seen, groups))
    return out


def _phases(window: Window, axis: int) -> list[tuple[list[int], int, int]]:
    """For each position modulo the stride along one axis: the taps that meet input pixels, dilation and padding.

    Tap t of output i is at i + (t - kernel_size + 1) * dilation + padding of the input with zeros inserted. The
    padding may be negative.
    """
    k, s, p, d = (pair[axis] for pair in window)
    found = []
    for first in range(s):
        taps = [t for t in range(k) if (first + (t - k + 1) * d + p) % s == 0]
        start = (first + (taps[0] - k + 1) * d + p) // s if taps else 0
        found.append((taps, d // math.gcd(d, s), -start))
    return found


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    input, kernel = input.contiguous(), kernel.float().contiguous()
    out = input.new_empty(*input.shape[:2], *kernel.shape[-2:])
    _run("pac_pooling", _shapes(input, out, window), input, kernel, kernel.shape[1], None, None, out)
    return out


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    guide = guide.contiguous()
    size = window.output_size(guide.shape[2], guide.shape[3])
    out = guide.new_empty(guide.shape[0], 1, *window.kernel_size, *size)
    _run("pac_distance", _shapes(guide, out, window), guide, out)
    return out


def why_not_built() -> str | None:
    """None if the compiled kernels are there, else why not."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@cache
def _load() -> ctypes.CDLL | str:
    folder = Path(__file__).parent
    found = [folder / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES if (folder / f"_native{suffix}").exists()]
    if not found:
        return "it was not compiled when pac_ops was installed, which takes GCC 12 or newer"
    try:
        return ctypes.CDLL(str(found[0]))
    except OSError as error:  # an OpenMP runtime without GNU's entry points, another libc
        return f"the compiled kernels did not load: {str(error).splitlines()[0]}"


def _shapes(input: Tensor, out: Tensor, window: Window, groups: int = 1) -> _Window:
    size = (*input.shape, out.shape[1], *out.shape[-2:], groups)
    kernel_size, stride, padding, dilation = window
    return _Window(*size, _PAIR(*kernel_size), _PAIR(*stride), _PAIR(*padding), _PAIR(*dilation))


def _run(function: str, shapes: _Window, *arguments: Tensor | int | None) -> None:
    """Call a kernel with pointers to contiguous float32 tensors."""
    library = _load()
    if isinstance(library, str):
        raise RuntimeError(library)  # noqa: TRY004 (`backends.choose` asks why_not_built first)
    passed = [
        ctypes.c_void_p(x.data_ptr())
        if isinstance(x, Tensor)
        else ctypes.c_void_p(None)
        if x is None
        else ctypes.c_int64(x)
        for x in arguments
    ]
    failed = getattr(library, function)(ctypes.byref(shapes), *passed, ctypes.c_int64(torch.get_num_threads()))
    if failed:
        raise MemoryError(f"{function} could not allocate its buffers")
