"""The result of a search: a table and one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hotswap.searching.family import Candidate
from hotswap.searching.statistics import Gain
from hotswap.searching.tasks import Metric
from hotswap.tables import render

Gains = Mapping[str, Gain]  # by metric


@dataclass(frozen=True)
class Tried:
    """A candidate, and what it gained on the images that it was last measured on."""

    candidate: Candidate
    gains: Gains

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        way = self.candidate.structure
        return {
            "targets": way.targets,
            "options": dict(way.options),
            "scales": list(self.candidate.scales),
            "gains": {name: gain.to_dict() for name, gain in self.gains.items()},
        }


@dataclass(frozen=True)
class SearchResult:
    """Whether a swap helps, and which."""

    swap: bool  # whether the chosen one is better on the images that had no part in the choice, beyond chance
    chosen: Tried  # with its gains on these images
    tried: tuple[Tried, ...]  # on the choosing images, the best first
    metrics: tuple[Metric, ...]  # the first is the one that was chosen by
    size: tuple[int, int]  # of the maps that were compared
    images: str  # where they are from, in words
    notes: tuple[str, ...] = ()
    network: nn.Module | None = field(default=None, repr=False)  # swapped as chosen; None where it is to be left

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
        return (
            f"Leave it: the best of {len(self.tried)} swaps, {what}, gains {by} (95 %: {between}) {where}, "
            "which may be chance or is a loss."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "swap": self.swap,
            "sentence": self.sentence,
            "metric": self.metrics[0].name,
            "size": list(self.size),
            "images": self.images,
            "chosen": self.chosen.to_dict(),
            "tried": [tried.to_dict() for tried in self.tried],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Tables: the choice, then the chosen one on the other images; notes; and the sentence."""
        names = [metric.title for metric in self.metrics]
        rows = [self._row(tried) for tried in self.tried]
        columns = ("enlargements", "swap", "guide scale", "images", *(f"gain: {name}" for name in names))
        held = [
            (
                metric.title,
                *(metric.text(value) for value in (gain.plain, gain.swapped)),
                _with_margin(metric, gain),
                gain.images,
            )
            for metric in self.metrics
            for gain in [self.chosen.gains[metric.name]]
        ]
        parts = [
            render(columns, rows),
            f"the first on other images ({self.images}; maps of {self.size[0]} x {self.size[1]}):",
            render(("metric", "plain", "swapped", "gain (95 %)", "images"), held),
            *(f"note: {note}" for note in self.notes),
            self.sentence,
        ]
        return "\n".join(parts)

    def _row(self, tried: Tried) -> tuple[Any, ...]:
        gains = [tried.gains[metric.name] for metric in self.metrics]
        return (
            tried.candidate.structure.targets,
            tried.candidate.structure.text,
            _scales(tried.candidate),
            gains[0].images,
            *(_with_margin(metric, gain) for metric, gain in zip(self.metrics, gains, strict=True)),
        )


def _with_margin(metric: Metric, gain: Gain) -> str:
    if math.isnan(gain.margin):
        return metric.signed(gain.better)
    return f"{metric.signed(gain.better)} ± {metric.signed(gain.margin).removeprefix('+')}"


def _scales(candidate: Candidate) -> str:
    return ", ".join(f"{scale:.3g}" for scale in candidate.scales)


def _described(candidate: Candidate) -> str:
    way = candidate.structure
    return f"{way.targets} with {way.text}, guide_scale={_scales(candidate)}"
