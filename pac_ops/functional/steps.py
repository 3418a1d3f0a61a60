"""A guided enlargement in steps, whole or a few rows at a time."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pac_ops import library
from pac_ops.area import area_average2d, exported_aligned2d, has_size
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement, refined_size
from pac_ops.functional import blocks
from pac_ops.functional.pyramid import halved, levels, odd, with_detail
from pac_ops.functional.weights import enlarged_rows, exported_step, guided_weights, plain_weights, scale_for
from pac_ops.geometry import Pair, any_open, size_of

# Weights of neighbours that are held at a time, where nothing is recorded: on a CPU 2 MiB, which stay near.
TAPS_OF_A_BAND, TAPS_ON_A_GPU = 2**19, 2**26
ROWS_OF_A_BAND = 16  # at least, where there are steps: two bands compute some of the rows between twice


class Step(NamedTuple):
    """An enlargement from one size to another, with the guide at both."""

    where: Enlargement
    guide: Tensor
    coarse_guide: Tensor

    def enlarged(self, input: Tensor, scale: float | Tensor, residual: bool) -> Tensor:
        """The whole map, through the dispatcher, so that gradients are recorded."""
        if torch.compiler.is_exporting():
            return exported_step(input, self.guide, self.coarse_guide, self.where, scale, residual)
        distance = library.resize_distance2d(self.guide, self.coarse_guide, *self.where.options)
        kernel = guided_weights(distance, size_of(self.coarse_guide), self.where, scale, residual)
        result: Tensor = library.pacresize2d(input, kernel, *self.where.options)
        return result

    def rows(
        self,
        input: Tensor,
        scale: float | Tensor,
        residual: bool,
        rows: slice | None = None,
        band: "Band | None" = None,
    ) -> Tensor:
        """Some fine rows, of the coarse rows that they need, or all, by the backend itself."""
        guide, coarse_guide, where = self.guide, self.coarse_guide, self.where
        if rows is not None and band is not None:
            guide, coarse_guide, where = guide[:, :, rows], coarse_guide[:, :, band.seen], band.where
        return enlarged_rows(input, guide, coarse_guide, size_of(self.coarse_guide), where, scale, residual)


class Band(NamedTuple):
    """The coarse rows that some fine rows need, and where their neighbours lie among them."""

    where: Enlargement
    seen: slice

    @classmethod
    def of(cls, where: Enlargement, coarse: Pair, fine: Pair, rows: slice, device: torch.device) -> "Band":
        """The band of these fine rows."""
        where = where._replace(band=(rows.start, rows.stop, fine[0]))
        first, after = _seen(where, coarse, fine, device)
        return cls(where._replace(held=(first, after, coarse[0])), slice(first, after))


@functools.lru_cache(256)  # networks repeat their sizes
def _seen(where: Enlargement, coarse: Pair, fine: Pair, device: torch.device) -> tuple[int, int]:
    """The first of the coarse rows that a band needs, and the one after the last."""
    near = where.neighbours(coarse, fine, device)[0]
    return int(near.min()), int(near.max()) + 1


class Steps(NamedTuple):
    """A guided enlargement."""

    steps: tuple[Step, ...]  # the coarsest first
    size: Pair  # of what they make
    scale: float | Tensor
    residual: bool
    halvings: int  # of the map before the first step; so many steps lead back to it
    bounds: Enlargement | None = None  # of the neighbours whose range no pixel leaves

    def whole(self, input: Tensor, *, recorded: bool = True) -> Tensor:
        """The map, enlarged; only where `recorded` through the dispatcher."""
        maps = levels(input, self.halvings)
        out, written = maps[0], in_blocks(size_of(input), self.size)
        for number, step in enumerate(self.steps):
            if written:
                out = blocks.enlarged(out, step.guide, step.coarse_guide, step.where, self.residual)
            else:
                out = (step.enlarged if recorded else step.rows)(out, self.scale, self.residual)
            if number < self.halvings:
                out = with_detail(out, maps[number + 1], maps[number])
        out = out if out.dtype == input.dtype else out.to(input.dtype)
        return out if self.bounds is None else _within(out, input, self.bounds)

    def at_once(self, input: Tensor) -> bool:
        """Whether all rows are one band."""
        return self._high(input) >= self.size[0] > 0

    def _high(self, input: Tensor) -> int:
        return band_height(input, self.steps[-1].guide, [step.where.footprint for step in self.steps])

    def bands(self, input: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the map, from the top down, and what they hold, [B, C, rows, W]."""
        height, high = self.size[0], self._high(input)
        maps = levels(input, self.halvings)
        for first in range(0, height, high):
            rows = slice(first, min(first + high, height))
            out = self._rows(maps, rows, len(self.steps)).to(input.dtype)
            if self.bounds is not None:
                band = Band.of(self.bounds, size_of(input), self.size, rows, input.device)
                out = _within(out, input[:, :, band.seen], band.where)
            yield rows, out

    def _rows(self, maps: Sequence[Tensor], rows: slice, count: int) -> Tensor:
        """Some rows of what the first steps make, so many of them."""
        if count == 0:
            return maps[0][:, :, rows]
        step = self.steps[count - 1]
        band = Band.of(step.where, size_of(step.coarse_guide), size_of(step.guide), rows, maps[0].device)
        out = step.rows(self._rows(maps, band.seen, count - 1), self.scale, self.residual, rows, band)
        return out if count > self.halvings else with_detail(out, maps[count], maps[count - 1], rows)


def guided_steps(
    guide: Tensor,
    coarse_guide: Tensor | None,
    coarse: Pair,
    where: Enlargement,
    footprints: Sequence[int],
    scale: float | Tensor,
    residual: bool,
    halvings: int = 0,
    bounded: bool = False,
) -> Steps:
    """An enlargement to the size of the guide, with a step for each footprint; `where` is mode="bilinear".

    Args:
        guide: at the output's size.
        coarse_guide: at the input's size; None for means of the guide.
        coarse: the input's size.
        where: the enlargement at once.
        footprints: of the steps, the coarsest first.
        scale: of the guide.
        residual: see `pacresize2d`.
        halvings: see `pacresize2d`.
        bounded: see `pacresize2d`.
    """
    if in_blocks(coarse, size_of(guide)):
        guide, coarse_guide = _scaled(guide, coarse_guide, scale)
    back, footprints = footprints[:halvings], footprints[halvings:]
    between = guides_between(guide, coarse, len(footprints) - 1, where.align_corners) if len(footprints) > 1 else []
    if coarse_guide is None:
        coarse_guide = halved(between[0]) if between else area_average2d(guide, coarse)
    least = coarse_guide.to(between[0].dtype) if between else coarse_guide
    guides = [least, *between, guide]
    planned = [] if back and _is_nothing(guide, coarse, footprints) else where.steps(footprints)
    steps = [Step(*step) for step in zip(planned, guides[1:], guides, strict=False)]
    for footprint in reversed(back):
        fine = least.to(accumulate_dtype(guide.dtype))
        least = halved(fine)
        steps.insert(0, Step(Enlargement(None, True, footprint), odd(fine), least))
    return Steps(tuple(steps), size_of(guide), scale, residual, halvings, where if bounded else None)


def _is_nothing(guide: Tensor, coarse: Pair, footprints: Sequence[int]) -> bool:
    """Whether steps from a map's size to a guide's leave a map as it is: each pixel has one neighbour, its own."""
    return tuple(footprints) == (2,) and has_size(guide, coarse)


def band_height(input: Tensor, guide: Tensor, footprints: Sequence[int]) -> int:
    """Rows of a band, of steps with these footprints to the size of a guide."""
    least = 1 if len(footprints) == 1 else ROWS_OF_A_BAND
    taps = input.shape[0] * guide.shape[3] * footprints[-1] ** 2  # of a row
    return max(least, (TAPS_ON_A_GPU if input.is_cuda else TAPS_OF_A_BAND) // max(taps, 1))


def in_blocks(coarse: Pair, fine: Pair) -> bool:
    """Whether steps are written in `blocks`, with guides that are scaled: under `torch.export`, of fixed sizes."""
    return torch.compiler.is_exporting() and not any_open(*coarse, *fine)


def _scaled(guide: Tensor, coarse_guide: Tensor | None, scale: float | Tensor) -> tuple[Tensor, Tensor | None]:
    """The guides times their scale, around 0: distances are the same, and rounded less where they are products."""
    wide = guide.to(accumulate_dtype(guide.dtype))
    factor = scale_for(scale, wide)
    mean = wide.mean(dim=(2, 3), keepdim=True)
    return (wide - mean) * factor, None if coarse_guide is None else (coarse_guide.to(wide.dtype) - mean) * factor


def guides_between(guide: Tensor, coarse: Pair, count: int, align_corners: bool) -> list[Tensor]:
    """The guide at the places of a coarse map's pixels with one put between each two; with one more; ...

    Each pixel is a mean of the area around its place: a box at the finest, and 1 2 1 of these at the coarser ones.
    """
    sizes = [refined_size(coarse, times) for times in range(1, count + 1)]
    rows, columns = sizes[-1]
    if align_corners:
        twice = (2 * rows - 1, 2 * columns - 1)
        finest = halved(guide.to(accumulate_dtype(guide.dtype)) if has_size(guide, twice) else _aligned(guide, twice))
    else:
        size = (coarse[0] * 2 ** (count + 1), coarse[1] * 2 ** (count + 1))
        cells = guide.to(accumulate_dtype(guide.dtype)) if has_size(guide, size) else area_average2d(guide, size)
        edge = 2**count - 1  # cells before the first place, and after the last
        cells = cells[:, :, edge : edge + 2 * rows, edge : edge + 2 * columns]
        if torch.compiler.is_exporting():
            finest = torch.nn.functional.avg_pool2d(cells, 2)
        else:
            cells = cells[:, :, ::2] + cells[:, :, 1::2]
            finest = (cells[..., ::2] + cells[..., 1::2]) * 0.25
    guides = [finest]
    for _ in sizes[:-1]:
        guides.insert(0, halved(guides[0]))
    return guides


def _aligned(guide: Tensor, size: Pair) -> Tensor:
    """mode="bilinear" with align_corners."""
    if torch.compiler.is_exporting():
        return exported_aligned2d(guide, size)
    where = Enlargement(None, True, 2)
    kernel = plain_weights(size_of(guide), size, where, guide)
    result: Tensor = library.pacresize2d(guide, kernel.expand(guide.shape[0], 1, *kernel.shape), *where.options)
    return result


def _within(enlarged: Tensor, input: Tensor, where: Enlargement) -> Tensor:
    """Pixels within the range of their coarse neighbours."""
    rows, columns = where.neighbours(size_of(input), size_of(enlarged), input.device)
    (top, bottom), (left, right) = rows.unbind(dim=1), columns.unbind(dim=1)
    bounds = []
    for extreme in (torch.minimum, torch.maximum):
        across = extreme(input.index_select(3, left), input.index_select(3, right))
        bounds.append(extreme(across.index_select(2, top), across.index_select(2, bottom)))
    return torch.minimum(torch.maximum(enlarged, bounds[0]), bounds[1])
