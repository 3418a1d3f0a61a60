"""The compiled CPU path, float32: `csrc`, built when the package is installed where there is a C compiler.

Convolution is an implicit matrix product, K applied to the taps as they are packed for it; its gradients are two such
products. Pooling, depthwise convolution and enlargement (`native_resize`) go row by row; distances are computed once
for each pair of pixels where there is a window for every pixel, else row by row. Nothing is padded or copied beyond
what a core's cache holds. A transposed convolution is one ordinary convolution for each position modulo the stride.
What it has no code for (gradients of distances, distances from given centres, transposed depthwise gradients) is
`cpu`'s.
"""

import ctypes
import math
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pac_ops import cpu
from pac_ops.cpu import (
    centred_distance2d,
    centred_distance2d_backward,
    squared_distance2d_backward,
)
from pac_ops.geometry import Window
from pac_ops.native_resize import pacresize2d, pacresize2d_backward, resize_distance2d, resize_distance2d_backward

__all__ = [
    "centred_distance2d",
    "centred_distance2d_backward",
    "gaussian_kernel2d",
    "pacconv2d",
    "pacconv2d_backward",
    "pacconv_transpose2d",
    "pacconv_transpose2d_backward",
    "pacpool2d",
    "pacpool2d_backward",
    "pacresize2d",
    "pacresize2d_backward",
    "resize_distance2d",
    "resize_distance2d_backward",
    "squared_distance2d",
    "squared_distance2d_backward",
    "why_not_built",
]

# What each kernel takes between its shapes and the number of threads: p, a pointer, or n, a number.
_ARGUMENTS = {
    "pac_convolution": "nppppp",
    "pac_convolution_backward": "ppppppp",
    "pac_distance": "pp",
    "pac_gaussian": "pp",
    "pac_pooling": "ppnppp",
    "pac_pooling_backward": "ppnppppp",
    "pac_enlarge": "ppppp",
    "pac_enlarge_distance": "ppppp",
    "pac_enlarge_distance_gradients": "ppppppp",
    "pac_enlarge_input_gradient": "ppppp",
    "pac_enlarge_kernel_gradient": "ppppp",
}
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64}

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class _Window(ctypes.Structure):
    """`Window` of csrc/window.h: the shapes and the sliding window of one call."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("out_channels", "out_height", "out_width", "groups")),
        *((name, ctypes.c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")),
        ("kernel_step", ctypes.c_int64 * 5),
        ("weight_step", ctypes.c_int64 * 5),
        ("out_step", ctypes.c_int64 * 4),
        ("grad_kernel_step", ctypes.c_int64 * 5),
        ("grad_weight_step", ctypes.c_int64 * 5),
    ]


class _Part(ctypes.Structure):
    """`Part` of csrc/convolution.c: one convolution of those that share their tensors."""

    _fields_ = [("window", _Window), *((name, ctypes.c_int64) for name in ("kernel", "weight", "out"))]


class _Weights(NamedTuple):
    """Elements `first` + a multiple of `step` of a tensor: [groups, outputs, inputs, kh, kw] as an operator sees it.

    A step may be negative, which a tensor's stride may not.
    """

    of: Tensor
    first: int
    step: tuple[int, int, int, int, int]

    @classmethod
    def all_of(cls, weight: Tensor, groups: int) -> "_Weights":
        """Of a convolution's weight [O, C/groups, kh, kw]."""
        outputs, inputs, down, across = weight.stride()
        return cls(weight, 0, (weight.shape[0] // groups * outputs, outputs, inputs, down, across))

    @property
    def pointer(self) -> int:
        return self.of.data_ptr() + self.first * self.of.element_size()


class _Phase(NamedTuple):
    """Output pixels of a transposed convolution whose positions are alike modulo the stride.

    They see input pixels under the same taps, and so are an ordinary convolution of the input: stride 1, those taps.
    """

    taps: tuple[range, range]  # of K; the weight's are the opposite ones
    pixels: tuple[slice, slice]
    window: Window

    def of(self, output: Tensor) -> Tensor:
        """These pixels of an image."""
        return output[(..., *self.pixels)]

    def of_kernel(self, kernel: Tensor) -> Tensor:
        """These pixels and taps of K."""
        rows, columns = (slice(taps.start, taps.stop, taps.step) for taps in self.taps)
        return kernel[(slice(None), slice(None), rows, columns, *self.pixels)]

    def opposite(self, size: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """The weight's taps."""
        rows, columns = ([k - 1 - t for t in taps] for k, taps in zip(size, self.taps, strict=True))
        return rows, columns

    def of_weight(self, weight: Tensor, groups: int) -> _Weights:
        """These taps of a transposed convolution's weight [C, O/groups, kh, kw]."""
        inputs, outputs, down, across = weight.stride()
        rows, columns = self.opposite(tuple(weight.shape[2:]))
        group = weight.shape[0] // groups * inputs
        apart = (-self.taps[0].step * down, -self.taps[1].step * across)
        return _Weights(weight, rows[0] * down + columns[0] * across, (group, outputs, inputs, *apart))


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    if not input.shape[1]:  # nothing to sum
        return cpu.pacconv2d(input, kernel, weight, bias, window, groups)
    out = input.new_empty(input.shape[0], weight.shape[0], *kernel.shape[-2:])
    if _is_depthwise(weight, groups):
        _depthwise(input, kernel, weight, bias, window, out)
    else:
        input, kernel = input.contiguous(), kernel.float()
        part = _part(input, kernel, _Weights.all_of(weight, groups), window, groups, out)
        _run("pac_convolution", part, 1, input, kernel, weight, _in_line(bias), out)
    return out


def pacconv2d_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needs: tuple[bool, bool, bool],
) -> _Gradients:
    """See `reference.pacconv2d_backward`."""
    if not (grad.numel() and input.numel()):
        return cpu.pacconv2d_backward(grad, input, kernel, weight, window, groups, needs)
    grads = _new_gradients(input, kernel, weight, needs)
    if _is_depthwise(weight, groups):
        _pool_backward(grad, input, kernel, weight, window, *grads)
        return grads
    into = None if grads[2] is None else _Weights.all_of(grads[2], groups)
    _convolve_backward(grad, input, kernel, _Weights.all_of(weight, groups), window, groups, grads[0], grads[1], into)
    return grads


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv_transpose2d`."""
    if not input.shape[1]:
        return cpu.pacconv_transpose2d(input, kernel, weight, bias, window, groups)
    out = input.new_empty(input.shape[0], weight.shape[1] * groups, *kernel.shape[-2:])
    input, kernel, parts = input.contiguous(), kernel.float(), []
    for phase in _phases(window):
        pixels, k_ij = phase.of(out), phase.of_kernel(kernel)
        if not k_ij.numel():  # no tap meets an input pixel
            pixels.copy_(torch.zeros(()) if bias is None else bias[:, None, None].expand_as(pixels))
        elif _is_depthwise(weight, groups):
            rows, columns = phase.opposite(window.kernel_size)
            whole = input.new_empty(pixels.shape)
            _depthwise(input, k_ij, weight[:, :, rows][..., columns], bias, phase.window, whole)
            pixels.copy_(whole)
        else:
            part = _part(input, k_ij, phase.of_weight(weight, groups), phase.window, groups, pixels)
            part.kernel = k_ij.storage_offset() - kernel.storage_offset()
            part.out = pixels.storage_offset()
            parts.append(part)
    if parts:
        all_parts = (_Part * len(parts))(*parts)
        _run("pac_convolution", all_parts, len(parts), input, kernel, weight, _in_line(bias), out)
    return out


def pacconv_transpose2d_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needs: tuple[bool, bool, bool],
) -> _Gradients:
    """See `reference.pacconv_transpose2d_backward`."""
    if _is_depthwise(weight, groups) or not (grad.numel() and input.numel()):
        return cpu.pacconv_transpose2d_backward(grad, input, kernel, weight, window, groups, needs)
    grad_input, grad_kernel, grad_weight = grads = _new_gradients(input, kernel, weight, needs)
    for phase in _phases(window):
        k_ij = phase.of_kernel(kernel)
        if not k_ij.numel():
            continue
        filters = phase.of_weight(weight, groups)
        into_kernel = None if grad_kernel is None else phase.of_kernel(grad_kernel)
        into_weight = None if grad_weight is None else phase.of_weight(grad_weight, groups)
        seen = (phase.window, groups)
        _convolve_backward(phase.of(grad), input, k_ij, filters, *seen, grad_input, into_kernel, into_weight)
    return grads


def _phases(window: Window) -> Iterator[_Phase]:
    for top, (taps_y, dilation_y, padding_y) in enumerate(_phases_along(window, 0)):
        for left, (taps_x, dilation_x, padding_x) in enumerate(_phases_along(window, 1)):
            size, dilation = (len(taps_y), len(taps_x)), (dilation_y, dilation_x)
            pixels = (slice(top, None, window.stride[0]), slice(left, None, window.stride[1]))
            yield _Phase((taps_y, taps_x), pixels, Window(size, (1, 1), (padding_y, padding_x), dilation))


def _phases_along(window: Window, axis: int) -> list[tuple[range, int, int]]:
    """For each position modulo the stride along one axis: the taps that meet input pixels, dilation and padding.

    Tap t of output i is at i + (t - kernel_size + 1) * dilation + padding of the input with zeros inserted. The
    padding may be negative.
    """
    k, s, p, d = (pair[axis] for pair in window)
    found = []
    for first in range(s):
        meeting = [t for t in range(k) if (first + (t - k + 1) * d + p) % s == 0]
        taps = range(meeting[0], k, s // math.gcd(d, s)) if meeting else range(0)
        start = (first + (taps[0] - k + 1) * d + p) // s if taps else 0
        found.append((taps, d // math.gcd(d, s), -start))
    return found


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return weight.shape[1] == 1 and weight.shape[0] == groups


def _new_gradients(input: Tensor, kernel: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]) -> _Gradients:
    """Zeros, contiguous and float32, for each gradient that is wanted."""
    grad_input, grad_kernel, grad_weight = (
        torch.zeros(x.shape) if need else None for x, need in zip((input, kernel, weight), needs, strict=True)
    )
    return grad_input, grad_kernel, grad_weight


def _part(input: Tensor, kernel: Tensor, weights: _Weights, window: Window, groups: int, out: Tensor) -> _Part:
    """One convolution; K and output may have any strides."""
    shapes = _shapes(input, out, window, groups)
    shapes.kernel_step = _kernel_step(kernel)
    shapes.weight_step = weights.step
    shapes.out_step = out.stride()
    return _Part(shapes, 0, weights.first, 0)


def _convolve_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weights: _Weights,
    window: Window,
    groups: int,
    grad_input: Tensor | None,
    grad_kernel: Tensor | None,
    grad_weights: _Weights | None,
) -> None:
    """One convolution's gradients: that of the input, contiguous, is added to, the others are overwritten."""
    input, kernel = input.contiguous(), kernel.float()
    shapes = _shapes(input, grad, window, groups)
    shapes.kernel_step = _kernel_step(kernel)
    shapes.weight_step = weights.step
    shapes.out_step = grad.stride()
    if grad_kernel is not None:
        shapes.grad_kernel_step = _kernel_step(grad_kernel)
    if grad_weights is not None:
        shapes.grad_weight_step = grad_weights.step
    to_weights = None if grad_weights is None else grad_weights.pointer
    _run(
        "pac_convolution_backward", shapes, input, kernel, weights.pointer, grad, grad_input, grad_kernel, to_weights
    )


def _kernel_step(kernel: Tensor) -> tuple[int, ...]:
    images, _, *others = kernel.stride()
    return images, *others


def _depthwise(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, out: Tensor
) -> None:
    input, kernel = input.contiguous(), kernel.float().contiguous()
    shapes = _shapes(input, out, window, input.shape[1])
    _run("pac_pooling", shapes, input, kernel, 1, weight.contiguous(), _in_line(bias), out)


def _in_line(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    input, kernel = input.contiguous(), kernel.float().contiguous()
    out = input.new_empty(*input.shape[:2], *kernel.shape[-2:])
    _run("pac_pooling", _shapes(input, out, window), input, kernel, kernel.shape[1], None, None, out)
    return out


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    grad_input, grad_kernel, _ = _new_gradients(input, kernel, kernel, (*needs, False))
    _pool_backward(grad, input, kernel, None, window, grad_input, grad_kernel, None)
    return grad_input, grad_kernel


def _pool_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    window: Window,
    grad_input: Tensor | None,
    grad_kernel: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    input, kernel, grad = input.contiguous(), kernel.float().contiguous(), grad.contiguous()
    weight = None if weight is None else weight.contiguous()
    grads = (grad_input, grad_kernel, grad_weight)
    _run("pac_pooling_backward", _shapes(input, grad, window), input, kernel, kernel.shape[1], weight, grad, *grads)


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    return _distances("pac_distance", guide, window)


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.gaussian_kernel2d`."""
    return _distances("pac_gaussian", guide, window)


def _distances(function: str, guide: Tensor, window: Window) -> Tensor:
    guide = guide.contiguous()
    size, shapes = _sizes_of_distances(guide.shape, window)
    out = guide.new_empty(size)
    _run(function, shapes, guide, out)
    return out


@lru_cache  # of a small map, the distances take less time than this
def _sizes_of_distances(guide: torch.Size, window: Window) -> tuple[tuple[int, ...], _Window]:
    size = window.output_size(guide[2], guide[3])
    return (guide[0], 1, *window.kernel_size, *size), _Window(*guide, 1, *size, 1, *window)


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
    return _Window(*input.shape, out.shape[1], *out.shape[-2:], groups, *window)


def _run(function: str, shapes: ctypes.Structure | ctypes.Array[_Part], *arguments: Tensor | int | None) -> None:
    """Call a kernel; of a float32 tensor, it gets the pointer."""
    passed = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    if _entry(function, lanes())(ctypes.byref(shapes), *passed, torch.get_num_threads()):
        raise MemoryError(f"{function} could not allocate its buffers")


@cache
def lanes() -> int:
    """Floats in a vector of the compiled kernels (enlargement aside): 16 with AVX-512, where PyTorch uses it too."""
    wide = hasattr(_load(), "pac_convolution_avx512") and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return 16 if wide else 8


@cache
def _entry(function: str, lanes: int) -> Any:
    library = _load()
    if isinstance(library, str):
        raise RuntimeError(library)  # noqa: TRY004 (`backends.choose` asks why_not_built first)
    wide = f"{function}_avx512"
    entry = getattr(library, wide if lanes == 16 and hasattr(library, wide) else function)
    entry.argtypes = [ctypes.c_void_p, *map(_KINDS.__getitem__, _ARGUMENTS[function]), ctypes.c_int64]
    return entry
