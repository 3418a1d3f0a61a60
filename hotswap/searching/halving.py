"""Successive halving: many candidates on a few images, fewer on more."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hotswap.errors import HotswapError
from hotswap.reporting.samples import Progress
from hotswap.searching.family import Candidate
from hotswap.searching.ledger import PLAIN, Ledger
from hotswap.searching.running import Runner
from hotswap.searching.samples import Source
from hotswap.searching.statistics import Gain, Sums, gain
from hotswap.searching.tasks import Metric, Task

_LEFT = 3  # candidates that are tried on all images of the choosing part
_FEWEST = 4  # images of a round


@dataclass(frozen=True)
class Bench:
    """Everything that candidates are measured with."""

    runner: Runner
    source: Source
    task: Task
    ledger: Ledger
    progress: Progress

    def measure(self, candidates: Sequence[Candidate], images: Iterable[int], what: str) -> None:
        """Measure candidates and the plain network on images, where that has not been done."""
        wanted = [PLAIN, *(candidate.key for candidate in candidates)]
        open_images = [i for i in images if any(self.ledger.get(key, self.source.name(i)) is None for key in wanted)]
        for index in self.progress(open_images, len(open_images), what):
            self._measure(candidates, index)

    def rows(self, key: str, images: Sequence[int], metric: Metric) -> Sums:
        """What a metric is computed from, a row an image."""
        rows = [self.ledger.get(key, self.source.name(i)) for i in images]
        return np.stack([row[metric.name] for row in rows if row is not None])

    def gain(self, candidate: Candidate, images: Sequence[int], metric: Metric) -> Gain:
        """A candidate beside the plain network."""
        plain, swapped = (self.rows(key, images, metric) for key in (PLAIN, candidate.key))
        return gain(plain, swapped, metric.value, higher_is_better=metric.higher_is_better)

    def gains(self, candidate: Candidate, images: Sequence[int]) -> dict[str, Gain]:
        """`gain` by each metric."""
        return {metric.name: self.gain(candidate, images, metric) for metric in self.task.metrics}

    def _measure(self, candidates: Sequence[Candidate], index: int) -> None:
        name = self.source.name(index)
        item = self.source.read(index)
        plain = self.runner.plain(item.sample.arguments)
        prepared = self.task.prepare(item.truth, self.runner.size_of(plain))
        if self.ledger.get(PLAIN, name) is None:
            self.ledger.put(PLAIN, name, self.task.measure(plain, prepared))
        for candidate in candidates:
            if self.ledger.get(candidate.key, name) is None:
                output = self.runner.swapped(candidate, item.sample.arguments)
                self.ledger.put(candidate.key, name, self.task.measure(output, prepared))


def choose(bench: Bench, candidates: Sequence[Candidate], images: Sequence[int]) -> list[tuple[Candidate, list[int]]]:
    """Halve the field on growing parts of the images.

    Returns:
        Every candidate with the images that it was last measured on, the best first.

    Raises:
        HotswapError: where labels hold nothing to measure by.
    """
    order = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    metric = bench.task.metrics[0]
    running = list(candidates)
    out: list[tuple[Candidate, list[int]]] = []
    counts = _counts(len(running), len(order))
    for number, count in enumerate(counts, start=1):
        seen = sorted(order[:count])
        bench.measure(running, seen, f"round {number} of {len(counts)}: {len(running)} swaps, {count} images")
        if not bench.rows(PLAIN, seen, metric).any():
            raise HotswapError(f"nothing counts in the labels of the first {count} images that were looked at")
        better = {candidate.key: bench.gain(candidate, seen, metric).better for candidate in running}
        running.sort(key=lambda candidate: -better[candidate.key])
        keep = len(running) if number == len(counts) else max(_LEFT, -(-len(running) // 2))
        out = [(candidate, seen) for candidate in running[keep:]] + out
        running = running[:keep]
    return [(candidate, sorted(order)) for candidate in running] + out


def _counts(candidates: int, images: int) -> list[int]:
    """How many images each round has: twice as many each time, up to all."""
    rounds = 1
    while candidates > _LEFT:
        candidates, rounds = max(_LEFT, -(-candidates // 2)), rounds + 1
    return [max(min(_FEWEST, images), images >> (rounds - number)) for number in range(1, rounds + 1)]
