"""The result of a search: a table and one sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from hotswap.searching.family import Candidate
from hotswap.searching.statistics import Gain
from hotswap.searching.tasks import Metric
from hotswap.tables import render

if TYPE_CHECKING:
    from hotswap.searching.drawing import Pictured

Gains = Mapping[str, Gain]  # by metric


@dataclass(frozen=True)
class Tried:
    """A candidate, and what it gained on the images that it was last measured on."""

    candidate: Candidate
    gains: Gains

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        gains = {name: gain.to_dict() for name, gain in self.gains.items()}
        return self.candidate.to_dict() | {"gains": gains}


class Table(NamedTuple):
    """A table for people."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class SearchResult:
    """Whether a swap helps, and which."""

    swap: bool  # whether the chosen one is better on the images that had no part in the choice, beyond chance
    chosen: Tried  # with its gains on these images
    tried: tuple[Tried, ...]  # on the choosing images, the best first
    metrics: tuple[Metric, ...]  # the first is the one that was chosen by
    sizes: tuple[tuple[int, int], ...]  # of the maps that were compared, to which labels were brought
    images: str  # where they are from, in words
    notes: tuple[str, ...] = ()
    pictures: "tuple[Pictured, ...]" = field(default=(), repr=False)  # where a page was asked for
    network: nn.Module | None = field(default=None, repr=False)  # a copy, swapped as chosen; None: leave it

    @property
    def sentence(self) -> str:
        """What to do, in one sentence."""
        metric = self.metrics[0]
        gain = self.chosen.gains[metric.name]
        what = _described(self.chosen.candidate)
        by = f"{metric.signed(gain.better)}{' points' if metric.unit == 100 else ''} of {metric.title}"
        between = f"{metric.signed(gain.better - gain.margin)} to {metric.signed(gain.better + gain.margin)}"
        where = f"on {gain.images} images that had no part in the choice"
        if self.swap:
            levels = f"{metric.text(gain.plain)} becomes {metric.text(gain.swapped)}"
            return f"Swap this: {what} gains {by} (95 %: {between}) {where}; {levels}."
        why = "which is a loss" if gain.better < -gain.margin else "which is no more than chance may give"
        return f"Leave it: the best of {len(self.tried)} swaps, {what}, gains {by} (95 %: {between}) {where}, {why}."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "swap": self.swap,
            "sentence": self.sentence,
            "metric": self.metrics[0].name,
            "sizes": [list(size) for size in self.sizes],
            "images": self.images,
            "chosen": self.chosen.to_dict(),
            "tried": [tried.to_dict() for tried in self.tried],
            "notes": list(self.notes),
        }

    @property
    def tried_table(self) -> Table:
        """Every swap on the choosing images, the best first."""
        names = [f"gain: {metric.title}" for metric in self.metrics]
        columns = ("enlargements", "swap", "guide scale", "images", *names)
        return Table(columns, tuple(self._row(tried) for tried in self.tried))

    @property
    def held_table(self) -> Table:
        """The chosen one on the images that had no part in the choice."""
        rows = [
            (m.title, m.text(gain.plain), m.text(gain.swapped), _with_margin(m, gain), gain.images)
            for m in self.metrics
            for gain in [self.chosen.gains[m.name]]
        ]
        return Table(("metric", "plain", "swapped", "gain (95 %)", "images"), tuple(rows))

    def __str__(self) -> str:
        """Tables: the choice, then the chosen one on the other images; notes; and the sentence."""
        parts = [
            render(self.tried_table.columns, self.tried_table.rows),
            f"the first, on other images ({self.images}; maps of {sizes_text(self.sizes)}, labels too):",
            render(self.held_table.columns, self.held_table.rows),
            *(f"note: {note}" for note in self.notes),
            self.sentence,
        ]
        return "\n".join(parts)

    def _row(self, tried: Tried) -> tuple[Any, ...]:
        gains = [tried.gains[metric.name] for metric in self.metrics]
        return (
            *tried.candidate.row,
            gains[0].images,
            *(_with_margin(metric, gain) for metric, gain in zip(self.metrics, gains, strict=True)),
        )


def sizes_text(sizes: Sequence[tuple[int, int]]) -> str:
    """Heights and widths, for people."""
    return " x ".join(map(str, sizes[0])) if len(sizes) == 1 else f"{len(sizes)} sizes"


def _with_margin(metric: Metric, gain: Gain) -> str:
    if math.isnan(gain.margin):
        return metric.signed(gain.better)
    return f"{metric.signed(gain.better)} ± {metric.signed(gain.margin).removeprefix('+')}"


def _described(candidate: Candidate) -> str:
    targets, text, scales = candidate.row
    return f"{targets} with {text}, guide_scale={scales}"
