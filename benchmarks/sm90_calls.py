"""The calls whose kernels `benchmarks.sm90` compiles: every kernel, at the shapes of the benchmarks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch

from pac_ops.backends import choose
from pac_ops.backends.triton import cycles, tiles
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Window


@dataclass(frozen=True)
class Call:
    """One call of the backend: its name, its shape, and how to make it."""

    name: str
    shape: str
    dtype: torch.dtype
    last: bool
    run: Callable[[], Any]
    operations: float
    moved: float  # bytes, each tensor once


def calls() -> Iterator[Call]:
    """The kernels, at the shapes of the benchmarks."""
    for dtype, last in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, False)):
        for batch, channels, size in ((1, 64, 256), (1, 256, 64), (8, 256, 128)):
            yield from _convolution(batch, channels, size, dtype, last=last)
    for batch, channels, size, tile in (
        (1, 64, 256, (128, 64, 64, 4, 3, 16)),
        (1, 256, 64, (64, 128, 64, 4, 4, 16)),
        (8, 256, 128, (128, 128, 64, 8, 4, 16)),
        (8, 256, 128, (128, 256, 64, 8, 4, 16)),
    ):
        yield _by_boxes(next(_convolution(batch, channels, size, torch.bfloat16, last=True)), tile)
    yield from _convolution(1, 512, 16, torch.bfloat16, last=True)
    for dtype, last in ((torch.bfloat16, True), (torch.float32, False)):
        yield from _convolution(1, 256, 64, dtype, last=last, window=_TWICE, transposed=True)
        yield from _convolution(1, 256, 64, dtype, last=last, groups=4)
        yield from _convolution(1, 96, 56, dtype, last=last, window=Window((7, 7), padding=(3, 3)), groups=96)
        yield from _pooling(256, 64, dtype, last=last)
    yield from _convolution(1, 21, 500, torch.float32, last=False, window=_CRF)
    for size in (64, 128):
        yield from _distances(128, size)
    yield from _enlargement(21)


_SQUARE = Window((3, 3), padding=(1, 1))
_TWICE = Window((5, 5), (2, 2), (2, 2))
_CRF = Window((5, 5), (1, 1), (32, 32), (16, 16))


def _by_boxes(call: Call, tile: tiles.Tiles) -> Call:
    """The same with one tile, of those that descriptors read, alone."""

    def run() -> None:
        with mock.patch.dict(cycles.SUM, {tiles.NARROW: {tile: 1}}):
            call.run()

    return replace(call, name=f"{call.name}, by boxes", run=run)


def _image(shape: Sequence[int], dtype: torch.dtype, *, last: bool) -> torch.Tensor:
    x = torch.empty(tuple(shape), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _bytes(*tensors: torch.Tensor) -> float:
    return float(sum(x.nbytes for x in tensors))


def _convolution(
    batch: int,
    channels: int,
    size: int,
    dtype: torch.dtype,
    *,
    last: bool,
    window: Window = _SQUARE,
    groups: int = 1,
    transposed: bool = False,
) -> Iterator[Call]:
    name = "pacconv_transpose2d" if transposed else "pacconv2d"
    backend, (kh, kw) = choose.load("triton"), window.kernel_size
    wide = window.transposed_size(size, size, (1, 1)) if transposed else window.output_size(size, size)
    x = _image((batch, channels, size, size), dtype, last=last)
    grad = _image((batch, channels, *wide), dtype, last=last)
    weight = _image((channels, channels // groups, kh, kw), dtype, last=last)
    kernel, bias = torch.empty(batch, 1, kh, kw, *wide), torch.empty(channels, dtype=dtype)
    operations = 2.0 * batch * channels * (channels // groups) * kh * kw * size**2
    moved = _bytes(x, grad, weight, kernel)
    shape = f"b{batch}-c{channels}-{size}x{size}-k{kh}"
    shape += f"-s{window.stride[0]}" * transposed + f"-g{groups}" * (groups > 1)
    shape += f"-d{window.dilation[0]}" * (window.dilation[0] > 1)

    def backward(needs: tuple[bool, bool, bool]) -> Any:
        return getattr(backend, f"{name}_backward")(grad, x, kernel, weight, window, groups, needs)

    forward = partial(getattr(backend, name), x, kernel, weight, bias, window, groups)
    of = ", transposed" if transposed else ""
    yield Call(name, shape, dtype, last, forward, operations, moved)
    both, alone = partial(backward, (True, True, False)), partial(backward, (False, False, True))
    moved_by_both = moved + _bytes(x, kernel)
    yield Call(f"gradients of input and K{of}", shape, dtype, last, both, operations, moved_by_both)
    yield Call(f"gradient of the weight{of}", shape, dtype, last, alone, operations, moved)


def _pooling(channels: int, size: int, dtype: torch.dtype, *, last: bool) -> Iterator[Call]:
    backend, shape = choose.load("triton"), f"b1-c{channels}-{size}x{size}-k3"
    x, grad = (_image((1, channels, size, size), dtype, last=last) for _ in range(2))
    kernel = torch.empty(1, 1, 3, 3, size, size)
    forward = partial(backend.pacpool2d, x, kernel, _SQUARE)
    yield Call("pacpool2d", shape, dtype, last, forward, 0.0, _bytes(x, grad, kernel))
    backward = partial(backend.pacpool2d_backward, grad, x, kernel, _SQUARE, (True, True))
    yield Call("gradients of a pooling", shape, dtype, last, backward, 0.0, _bytes(grad, x, x, kernel, kernel))


def _distances(channels: int, size: int) -> Iterator[Call]:
    backend, shape = choose.load("triton"), f"c{channels}-{size}x{size}-k3"
    guide = _image((1, channels, size, size), torch.bfloat16, last=True)
    kernel = torch.empty(1, 1, 3, 3, size, size)
    forward = partial(backend.gaussian_kernel2d, guide, _SQUARE)
    yield Call("gaussian_kernel2d", shape, guide.dtype, True, forward, 0.0, _bytes(guide, kernel))
    backward = partial(backend.squared_distance2d_backward, kernel, guide, _SQUARE)
    yield Call("gradient of distances", shape, guide.dtype, True, backward, 0.0, _bytes(guide, kernel, guide))


def _enlargement(channels: int) -> Iterator[Call]:
    backend, where, shape = choose.load("triton"), Enlargement(None, False, 2), f"c{channels}-64to512-g3"
    scores, image = torch.empty(1, channels, 64, 64), torch.empty(1, 3, 512, 512)
    coarse, kernel = torch.empty(1, 3, 64, 64), torch.empty(1, 1, 2, 2, 512, 512)
    grad = torch.empty(1, channels, 512, 512)
    made: tuple[tuple[str, Callable[[], Any], float], ...] = (
        (
            "pacresize2d",
            partial(backend.guided_resize2d, scores, image, coarse, where, 1.0, False),
            _bytes(scores, image, coarse, grad),
        ),
        (
            "pacresize2d, recorded",
            partial(backend.pacresize2d, scores, kernel, where),
            _bytes(scores, kernel, grad),
        ),
        (
            "gradients of pacresize2d",
            partial(backend.pacresize2d_backward, grad, scores, kernel, where, (True, True)),
            _bytes(scores, scores, kernel, kernel, grad),
        ),
        (
            "resize_distance2d",
            partial(backend.resize_distance2d, image, coarse, where),
            _bytes(image, coarse, kernel),
        ),
        (
            "gradients of resize_distance2d",
            partial(backend.resize_distance2d_backward, kernel, image, coarse, where),
            _bytes(image, image, coarse, coarse, kernel),
        ),
    )
    for name, run, moved in made:
        yield Call(name, shape, torch.float32, False, run, 0.0, moved)
