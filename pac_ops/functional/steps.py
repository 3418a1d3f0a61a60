"""A guided enlargement as a chain of steps, whole or a few rows at a time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pac_ops import library
from pac_ops.area import area_average2d
from pac_ops.backends import choose
from pac_ops.enlargement import Enlargement
from pac_ops.functional.weights import guided_weights, plain_weights
from pac_ops.geometry import Pair

TAPS_OF_A_BAND = 2**19  # weights of neighbours that are held at a time, where nothing is recorded: 2 MiB stay near
ROWS_OF_A_BAND = 16  # at least, where there are steps: two bands compute some of the rows between twice


class Step(NamedTuple):
    """An enlargement from one size to another; plain where there are no guides."""

    where: Enlargement
    coarse: Pair
    fine: Pair
    guides: tuple[Tensor, Tensor] | None = None  # at the fine size, and at the coarse one

    def enlarged(self, input: Tensor, scale: float | Tensor, residual: bool) -> Tensor:
        """The whole map, through the dispatcher, so that gradients are recorded."""
        options = (self.where.scale_factor, self.where.align_corners, self.where.footprint)
        if self.guides is None:
            kernel = plain_weights(self.coarse, self.fine, self.where, input)
        else:
            distance = library.resize_distance2d(*self.guides, *options)
            kernel = guided_weights(distance, self.coarse, self.where, scale, residual)
        result: Tensor = library.pacresize2d(input, kernel, *options)
        return result

    def band(self, rows: slice, device: torch.device) -> tuple[Enlargement, slice]:
        """Where the neighbours of some fine rows lie in a map of no other coarse rows, and which these are."""
        where = self.where._replace(band=(rows.start, rows.stop, self.fine[0]))
        near = where.neighbours(self.coarse, self.fine, device)[0]
        seen = slice(int(near.min()), int(near.max()) + 1)
        return where._replace(held=(seen.start, seen.stop, self.coarse[0])), seen

    def rows(
        self, input: Tensor, rows: slice, where: Enlargement, seen: slice, scale: float | Tensor, residual: bool
    ) -> Tensor:
        """Some fine rows, of the coarse rows that they need; see `band`."""
        if self.guides is None:
            kernel = plain_weights(self.coarse, (rows.stop - rows.start, self.fine[1]), where, input)
        else:
            guide, coarse_guide = self.guides[0][:, :, rows], self.guides[1][:, :, seen]
            distance = choose.implementation(guide).resize_distance2d(guide, coarse_guide, where)
            kernel = guided_weights(distance, self.coarse, where, scale, residual)
        result: Tensor = choose.implementation(input).pacresize2d(input, kernel, where)
        return result


class Chain(NamedTuple):
    """Steps, the coarsest first."""

    steps: tuple[Step, ...]
    scale: float | Tensor = 1.0
    residual: bool = False

    def whole(self, input: Tensor) -> Tensor:
        """The map, enlarged."""
        for step in self.steps:
            input = step.enlarged(input, self.scale, self.residual)
        return input

    def rows(self, input: Tensor, rows: slice) -> Tensor:
        """Some rows of it, [B, C, rows, W]."""
        if not self.steps:
            return input[:, :, rows]
        where, seen = self.steps[-1].band(rows, input.device)
        coarse = self._replace(steps=self.steps[:-1]).rows(input, seen)
        return self.steps[-1].rows(coarse, rows, where, seen, self.scale, self.residual)


class GuidedChain(NamedTuple):
    """A guided enlargement: a chain, and what is done to its result."""

    guided: Chain
    # Added at once, and taken off in the same steps, so that with K = 1 the result is the plain enlargement.
    plain: tuple[Chain, Chain] | None
    bounds: Step | None  # whose neighbours' range no pixel leaves

    def whole(self, input: Tensor) -> Tensor:
        """The map, enlarged."""
        out = self.guided.whole(input)
        if self.plain is not None:
            at_once, in_steps = self.plain
            out = out + (at_once.whole(input) - in_steps.whole(input))
        return out if self.bounds is None else _within(out, input, self.bounds.where)

    def bands(self, input: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the map, from the top down, and what they hold, [B, C, rows, W]."""
        steps = self.guided.steps
        height, width = steps[-1].fine
        least = 1 if len(steps) == 1 else ROWS_OF_A_BAND
        high = max(least, TAPS_OF_A_BAND // (input.shape[0] * width * steps[-1].where.footprint ** 2))
        for first in range(0, height, high):
            rows = slice(first, min(first + high, height))
            out = self.guided.rows(input, rows)
            if self.plain is not None:
                at_once, in_steps = self.plain
                out = out + (at_once.rows(input, rows) - in_steps.rows(input, rows))
            if self.bounds is not None:
                where, seen = self.bounds.band(rows, input.device)
                out = _within(out, input[:, :, seen], where)
            yield rows, out

    @property
    def needs_bands(self) -> bool:
        """Whether a call that records nothing has more pixels than one band."""
        last = self.guided.steps[-1]
        assert last.guides is not None  # noqa: S101 (for the type checker)
        return last.guides[0].shape[0] * last.fine[0] * last.fine[1] * last.where.footprint**2 > TAPS_OF_A_BAND


def guided_chain(
    guide: Tensor,
    coarse_guide: Tensor,
    where: Enlargement,
    footprints: Sequence[int],
    scale: float | Tensor,
    residual: bool,
    bounded: bool = False,
) -> GuidedChain:
    """An enlargement to the size of the guide, in a step for each footprint; `where` is mode="bilinear"."""
    coarse, fine = (coarse_guide.shape[2], coarse_guide.shape[3]), (guide.shape[2], guide.shape[3])
    at_once = Step(where, coarse, fine)
    planned = where.steps(coarse, fine, footprints)
    guides = [guide]
    for size, _ in planned[-2::-1]:
        guides.insert(0, area_average2d(guides[0], size))
    coarse_guide = coarse_guide if len(planned) == 1 else coarse_guide.to(guides[0].dtype)
    steps = []
    for fine_guide, (size, step) in zip(guides, planned, strict=True):
        steps.append(Step(step, coarse, size, (fine_guide, coarse_guide)))
        coarse, coarse_guide = size, fine_guide
    plain = None
    if residual and len(steps) > 1:
        bilinear = [step._replace(where=step.where._replace(footprint=2), guides=None) for step in steps]
        plain = (Chain((at_once,)), Chain(tuple(bilinear)))
    return GuidedChain(Chain(tuple(steps), scale, residual), plain, at_once if bounded else None)


def _within(enlarged: Tensor, input: Tensor, where: Enlargement) -> Tensor:
    """Pixels within the range of their coarse neighbours."""
    rows, columns = where.neighbours((input.shape[2], input.shape[3]), _size(enlarged), input.device)
    (top, bottom), (left, right) = rows.unbind(dim=1), columns.unbind(dim=1)
    bounds = []
    for extreme in (torch.minimum, torch.maximum):
        across = extreme(input.index_select(3, left), input.index_select(3, right))
        bounds.append(extreme(across.index_select(2, top), across.index_select(2, bottom)))
    return torch.minimum(torch.maximum(enlarged, bounds[0]), bounds[1])


def _size(x: Tensor) -> Pair:
    return x.shape[2], x.shape[3]
