"""A transposed convolution as one ordinary convolution for each position modulo the stride."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pac_ops.backends.blocked import convolution as blocked
from pac_ops.backends.native.compiled import FLOAT32, new_gradients, run
from pac_ops.backends.native.convolution import Part, Weights, convolve_backward, is_depthwise, part_of
from pac_ops.backends.native.pooling import pooled
from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.formats import contiguous
from pac_ops.geometry import Window


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

    def of_weight(self, weight: Tensor, groups: int) -> Weights:
        """These taps of a transposed convolution's weight [C, O/groups, kh, kw]."""
        inputs, outputs, down, across = weight.stride()
        rows, columns = self.opposite(tuple(weight.shape[2:]))
        group = weight.shape[0] // groups * inputs
        apart = (-self.taps[0].step * down, -self.taps[1].step * across)
        return Weights(weight, rows[0] * down + columns[0] * across, (group, outputs, inputs, *apart))


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv_transpose2d`."""
    return convolved_transposed(input, kernel, weight, bias, window, groups, FLOAT32)


def convolved_transposed(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int, products: str
) -> Tensor:
    """A transposed convolution of float32 tensors; see `convolution.convolved`."""
    if not input.shape[1]:
        return blocked.pacconv_transpose2d(input, kernel, weight, bias, window, groups)
    out = input.new_empty(input.shape[0], weight.shape[1] * groups, *kernel.shape[-2:])
    input, kernel, parts = contiguous(input), kernel.float(), []
    for phase in _phases(window):
        pixels, k_ij = phase.of(out), phase.of_kernel(kernel)
        if not k_ij.numel():  # no tap meets an input pixel
            pixels.copy_(torch.zeros(()) if bias is None else bias[:, None, None].expand_as(pixels))
        elif is_depthwise(weight, groups):
            rows, columns = phase.opposite(window.kernel_size)
            pixels.copy_(pooled(input, k_ij, weight[:, :, rows][..., columns], bias, phase.window))
        else:
            part = part_of(input, k_ij, phase.of_weight(weight, groups), phase.window, groups, pixels)
            part.kernel = k_ij.storage_offset() - kernel.storage_offset()
            part.out = pixels.storage_offset()
            parts.append(part)
    if parts:
        all_parts = (Part * len(parts))(*parts)
        run(f"pac_convolution{products}", all_parts, len(parts), input, kernel, weight, contiguous(bias), out)
    return out


def pacconv_transpose2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv_transpose2d_backward`."""
    return transposed_gradients(grad, input, kernel, weight, window, groups, needs, FLOAT32)


def transposed_gradients(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needs: Needs,
    products: str,
) -> Gradients:
    """The gradients of `convolved_transposed`."""
    if is_depthwise(weight, groups) or not (grad.numel() and input.numel()):
        return blocked.pacconv_transpose2d_backward(grad, input, kernel, weight, window, groups, needs)
    grad_input, grad_kernel, grad_weight = grads = new_gradients(input, kernel, weight, needs)
    for phase in _phases(window):
        k_ij = phase.of_kernel(kernel)
        if not k_ij.numel():
            continue
        filters = phase.of_weight(weight, groups)
        into_kernel = None if grad_kernel is None else phase.of_kernel(grad_kernel)
        into_weight = None if grad_weight is None else phase.of_weight(grad_weight, groups)
        seen = (phase.window, groups)
        convolve_backward(phase.of(grad), input, k_ij, filters, *seen, grad_input, into_kernel, into_weight, products)
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
    phases = []
    for first in range(s):
        meeting = [t for t in range(k) if (first + (t - k + 1) * d + p) % s == 0]
        taps = range(meeting[0], k, s // math.gcd(d, s)) if meeting else range(0)
        start = (first + (taps[0] - k + 1) * d + p) // s if taps else 0
        phases.append((taps, d // math.gcd(d, s), -start))
    return phases
