"""Tiles that are rectangles of one image, read by a chip that fetches such boxes by itself (TMA, from Hopper on)."""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found"

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pac_ops.backends.triton.filters import Filters
from pac_ops.backends.triton.launch import INTERPRETED, Launch, is_traced
from pac_ops.backends.triton.layout import Layout
from pac_ops.backends.triton.tiles import Meta
from pac_ops.backends.triton.walk import Walk

_NARROW = (torch.bfloat16, torch.float16)
_STEP = 8  # elements of 2 bytes between what a descriptor steps over
_DEEPEST = 64  # channels of a box at most
_CAPABILITY = 9


def fits(x: Layout, filters: Filters, walk: Walk, inner: int, device: torch.device) -> bool:
    """Whether descriptors can read an image and the filters of a convolution of stride 1.

    Args:
        x: [B, groups * inner, H, W].
        filters: of the convolution, channels-last as the kernel reads them.
        walk: from the output's pixels to the input's.
        inner: input channels of a group.
        device: to run on.
    """
    slides = all(axis.multiply == 1 and axis.divide == 1 for axis in walk)
    narrow = x.dtype in _NARROW and x.dtype == filters.weight.dtype
    if not slides or not narrow or filters.swapped or filters.flipped or is_traced():
        return False
    across, beside, *down = x.strides
    steps = (inner, across, *down)
    aligned = beside == 1 and all(step > 0 and step % _STEP == 0 for step in steps)
    # A box reaches into another group's channels, and infinity there times a weight of 0 is not 0.
    alone = x.shape[1] == inner or inner & (inner - 1) == 0 or inner % _DEEPEST == 0
    if not aligned or not alone or min(x.shape) < 1:
        return False
    return INTERPRETED or torch.cuda.get_device_properties(device).major >= _CAPABILITY


class Boxed:
    """A launch on descriptors; for tensors that begin elsewhere than at a multiple of 16 bytes, one on pointers."""

    def __init__(
        self, kernel: Any, grids: Sequence[Sequence[int]], arguments: dict[str, Any], meta: Meta, device: torch.device
    ):
        """Take a kernel of x, K, the weight and others, and its grids: of boxes, and of other tiles."""
        box, height = meta["BOX"], meta["BLOCK_P"] // meta["BOX"]
        self._of_x = [1, height, box, meta["BLOCK_I"]]
        self._of_weight = [meta["BLOCK_O"], 1, meta["BLOCK_I"]]
        self._boxed = Launch(kernel, grids[0], arguments | meta, device, self._described)
        self._plain = Launch(kernel, grids[1], arguments | meta | {"BOX": 0}, device)

    def __call__(self, x: Tensor, kernel: Tensor, weight: Tensor, *others: Tensor | None) -> None:
        """Run on these tensors."""
        apart = x.data_ptr() % 16 or weight.data_ptr() % 16
        (self._plain if apart else self._boxed)(x, kernel, weight, *others)

    def _described(self, x: Tensor, kernel: Tensor, weight: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
        from triton.tools.tensor_descriptor import TensorDescriptor

        (batch, channels, height, width), (outer, inner, kh, kw) = x.shape, weight.shape
        across, _, down, beside = x.stride()
        taps = kh * kw
        image = TensorDescriptor(x, [batch, height, width, channels], [across, down, beside, 1], self._of_x)
        filters = TensorDescriptor(weight, [outer, taps, inner], [taps * inner, inner, 1], self._of_weight)
        return image, kernel, filters, *others
