"""sum_taps K * (W_tap v_tap): the kernel under every convolution, either way, and the gradients of its input and K.

K is one number a pixel and tap. For the sum alone it is multiplied into the operand, in float32: in 16 bits that is
then rounded to the operand's dtype, by no more than the input itself was. So there is one accumulator, which leaves
registers for tiles of 128 x 256. The gradient of K is the tap's sum over channels, seen from the other side, times
what a pixel holds: one product serves the gradients of input and K, and K multiplies that sum, in float32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pac_ops.backends.triton import boxes, split, tiles, winners
from pac_ops.backends.triton.arguments import cdiv, index_type, products, strides, walked
from pac_ops.backends.triton.cycles import SUM, WITH_GRADIENT
from pac_ops.backends.triton.filters import Filters, weight_strides
from pac_ops.backends.triton.gather_kernels import direct_kernel, dot_kernel
from pac_ops.backends.triton.launch import Launch, Run
from pac_ops.backends.triton.layout import Layout, Settings
from pac_ops.backends.triton.tiles import Meta
from pac_ops.backends.triton.walk import Walk

# Below so many weights a group and tap, matrix units would multiply mostly padding: 16 is their smallest side.
SMALLEST_PRODUCT = 16 * 16


class Gather(NamedTuple):
    """All of a gather that follows from its shapes."""

    launch: Run
    device: torch.device
    out: Layout | None
    slabs: Layout | None  # what K's gradient is summed in
    copied: bool  # the weight, channels-last
    slabbed: bool  # a slab for each part of the channels, to be added
    parts: Layout | None = None  # what sums that are split are written to
    add: Launch | None = None  # these

    def run(
        self,
        x: Tensor,
        kernel: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The sum, and K's gradient."""
        out = None if self.out is None else self.out.empty(self.device)
        to = out if self.parts is None else self.parts.empty(self.device)
        if self.copied and weight is not None:
            weight = weight.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.contiguous()
        slabs = None if self.slabs is None else self.slabs.empty(self.device).zero_()
        self.launch(x, kernel, weight, bias, to, factor, slabs)
        if self.add is not None:
            self.add(to, out)
        return out, slabs.sum(dim=0) if slabs is not None and self.slabbed else slabs

    def result(self, x: Tensor, kernel: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The sum alone."""
        out, _ = self.run(x, kernel, weight, bias)
        assert out is not None  # noqa: S101 (for the type checker)
        return out


def is_product(channels: int, others: int) -> bool:
    """Whether matrix units multiply so many channels of a group with so many others."""
    return channels * others >= SMALLEST_PRODUCT


def gather(
    x: Layout,
    kernel: Layout,
    filters: Filters | None,
    out: Layout,
    walk: Walk,
    groups: int,
    settings: Settings,
    *,
    at_source: bool = False,
    factor: Layout | None = None,
    output: bool = True,
) -> Gather:
    """The plan of the sum, and of K's gradient where `factor` is given.

    Args:
        x: what the taps read, [B, groups * inner, XH, XW].
        kernel: K, of size (H, W), or (XH, XW) with `at_source`.
        filters: the weight; or None for all ones with one channel a group.
        out: the output, [B, groups * outer, H, W].
        walk: from a pixel of the output to those it reads.
        groups: of channels.
        settings: the device, and switches.
        at_source: K is indexed by the pixel read.
        factor: of the output's size. K's gradient, of K's size, is its product with each tap's sum, summed over
            channels. Only with `at_source`.
        output: whether the sum is wanted.
    """
    batch, channels, height, width = out.shape
    inner, outer = x.shape[1] // groups, channels // groups
    channel_wise = kernel.shape[1] > 1
    direct = filters is None or not is_product(inner, outer)
    arguments: dict[str, Any] = {
        **strides("x", x),
        **strides("kernel", kernel, "bcijyx"),
        **strides("out", out if output else None),
        **strides("factor", factor),
        **walked(walk, (height, width), x),
        "groups": groups,
        "inner": inner,
        "outer": outer,
        "AT_SOURCE": at_source,
        "FLIPPED": filters is not None and filters.flipped,
        "OUTPUT": output,
        "GRADIENT": factor is not None,
    }
    pixels = cdiv(height, walk.rows.divide) * cdiv(width, walk.columns.divide) * batch

    def parts_of(meta: Meta) -> int:
        return cdiv(channels, meta["BLOCK_O"]) if direct else groups * cdiv(outer, meta["BLOCK_O"])

    def programs(meta: Meta) -> int:
        box = meta.get("BOX", 0)
        if box:
            return batch * cdiv(height, meta["BLOCK_P"] // box) * cdiv(width, box) * parts_of(meta)
        return cdiv(pixels, meta["BLOCK_P"]) * walk.phases * parts_of(meta)

    taps = cdiv(walk.rows.taps * walk.columns.taps, walk.phases)

    def steps(meta: Meta, multiprocessors: int) -> int:
        return cdiv(programs(meta), multiprocessors) * cdiv(inner, meta["BLOCK_I"]) * taps

    if direct:
        arguments["CHANNEL_WISE"], splits = channel_wise, 1
        copied = filters is not None and filters.scattered
        metas = [tiles.elementwise(x.strides, channels)]
    else:
        assert filters is not None  # noqa: S101 (for the type checker)
        arguments |= products(settings.precision, x, filters.weight)
        cycles, name = (SUM, winners.SUM) if factor is None else (WITH_GRADIENT, winners.WITH_GRADIENT)
        boxed = factor is None and not at_source and boxes.fits(x, filters, walk, inner, settings.device)
        metas = tiles.products(cycles, arguments, steps, settings.device, "BLOCK_I", name, boxed=boxed)
        units = tiles.multiprocessors(settings.device)
        copied = filters.copied(steps(metas[0], units), metas[0])
        of_one = taps * cdiv(inner, metas[0]["BLOCK_I"])
        splits = split.splits(programs(metas[0]), of_one, of_one if factor is None else taps, units) if output else 1
        arguments |= {"APART": filters.apart and not filters.swapped and not copied, "SPLITS": splits, "BOX": 0}
    arguments |= weight_strides(filters, groups, copied=copied)
    parts = parts_of(metas[0])
    slabbed = factor is not None and settings.deterministic and not channel_wise
    of_kernel = None if factor is None else Layout.dense(kernel.shape, torch.float32)
    slabs = Layout.dense((parts, *kernel.shape), torch.float32) if slabbed else of_kernel
    arguments |= {
        **strides("grad_kernel", of_kernel, "bcijyx"),
        "grad_kernel_stride_s": slabs.strides[0] if slabs is not None and slabbed else 0,
        "ADD": not slabbed,
        "INDEX": index_type(x, kernel, out if output else None, factor, of_kernel),
    }
    code = direct_kernel if direct else dot_kernel

    def launch(meta: Meta) -> Run:
        grid = (programs(meta), splits)
        if meta.get("BOX", 0):
            apart = (programs(meta | {"BOX": 0}), splits)
            return boxes.Boxed(code, (grid, apart), arguments, meta, settings.device)
        return Launch(code, grid, arguments | meta, settings.device)

    run, result = tiles.fastest(launch, metas, sums=[6]), out if output else None
    if splits == 1:
        return Gather(run, settings.device, result, slabs, copied, slabbed)
    add = split.adding(out, splits, settings.device)
    return Gather(run, settings.device, result, slabs, copied, slabbed, split.slabs(out, splits), add)


def gradients(
    grad: Layout,
    input: Layout,
    kernel: Layout,
    filters: Filters | None,
    out: Layout,
    back: Walk,
    groups: int,
    needs: Sequence[bool],
    settings: Settings,
) -> Gather | None:
    """The plan of the gradients of a gather: a pixel of the input gathers from the outputs that read it.

    Args:
        grad: of the output.
        input: what the taps read.
        kernel: K.
        filters: those of the gather, inner and outer channels exchanged.
        out: the gradient of the input.
        back: the walk back.
        groups: of channels.
        needs: which of the gradients of input and K are wanted.
        settings: the device, and switches.
    """
    if not (needs[0] or needs[1]):
        return None
    factor = input if needs[1] else None
    return gather(grad, kernel, filters, out, back, groups, settings, at_source=True, factor=factor, output=needs[0])
