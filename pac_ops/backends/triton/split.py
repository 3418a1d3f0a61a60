"""Sums that are split over programs, where these are too few to fill a device: partial sums, and their sum."""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

import math
from typing import Any

import torch
import triton
import triton.language as tl

from pac_ops.backends.triton.arguments import cdiv
from pac_ops.backends.triton.launch import Launch
from pac_ops.backends.triton.layout import Layout

# Steps of a loop that splitting it must save, 5 us: as long as the launch of the second kernel, what it reads and
# what it writes take on the device.
WORTH = 20


@triton.jit
def _sum_kernel(parts, out, elements, SPLITS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Add slabs in their order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    total = tl.zeros((BLOCK_P,), tl.float32)
    for slab in range(SPLITS):
        total += tl.load(parts + slab * elements + at, mask=at < elements, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < elements)


def splits(programs: Any, steps: int, most: int, multiprocessors: int) -> int:
    """Into how many parts to split sums, so that a multiprocessor has one: 1 where that saves too little.

    Args:
        programs: that there are without; in a trace it may be a symbol, which stays open.
        steps: of a program.
        most: into how many parts a sum can be split.
        multiprocessors: of the device.
    """
    if not isinstance(programs, int) or not programs:
        return 1
    parts = max(1, min(most, multiprocessors // programs))
    return parts if steps - cdiv(steps, parts) >= WORTH else 1


def slabs(out: Layout, parts: int) -> Layout:
    """Partial sums of a dense tensor, in float32, one behind the other."""
    return Layout((parts, *out.shape), (math.prod(out.shape), *out.strides), torch.float32)


def adding(out: Layout, parts: int, device: torch.device) -> Launch:
    """The launch, on slabs and a tensor, that adds the first into the second."""
    elements = math.prod(out.shape)
    arguments = {"elements": elements, "SPLITS": parts, "BLOCK_P": 512, "num_warps": 4}
    return Launch(_sum_kernel, (cdiv(elements, 512),), arguments, device)
