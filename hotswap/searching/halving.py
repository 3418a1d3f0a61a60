"""Successive halving: many candidates on a few images, fewer on more."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from hotswap.reporting.samples import Progress
from hotswap.searching.family import Candidate, Structure
from hotswap.searching.ledger import PLAIN, Ledger
from hotswap.searching.replay import Replay
from hotswap.searching.samples import Source
from hotswap.searching.statistics import Gain, Sums, gain
from hotswap.searching.tasks import Metric, Task

_LEFT = 3  # candidates that are tried on all images of the choosing part
_FEWEST = 4  # images of a round
_SAME = 1e-4  # of the largest value: by how much a replayed output may differ from a whole run's


@dataclass
class Bench:
    """Everything that candidates are measured with."""

    plain: nn.Module
    structures: Sequence[Structure]
    source: Source
    task: Task
    ledger: Ledger
    progress: Progress
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        networks = [structure.network for structure in self.structures]
        self._replay = Replay(self.plain, networks)
        self._checked: set[int] = set()
        self._stack = ExitStack()
        self._stack.enter_context(self._replay.installed(networks))

    def close(self) -> None:
        """Leave the networks as they were."""
        self._stack.close()

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
        prepared = self.task.prepare(item.truth)
        plain = self._replay.plain(item.sample.arguments)
        if self.ledger.get(PLAIN, name) is None:
            self.ledger.put(PLAIN, name, self.task.measure(plain, prepared))
        for candidate in candidates:
            if self.ledger.get(candidate.key, name) is None:
                output = self.output(candidate, item.sample.arguments)
                self.ledger.put(candidate.key, name, self.task.measure(output, prepared))

    def output(self, candidate: Candidate, arguments: tuple[Any, ...]) -> Any:
        """A candidate's output for the image that the plain network has just been run on.

        The first of each structure is compared with a run of the whole network.
        """
        network = candidate.at_its_scale()
        output = self._replay.swapped(network, arguments)
        if id(network) in self._checked:
            return output
        self._checked.add(id(network))
        whole = self._replay.swapped(network, arguments, whole=True)
        if _differs(*(self.task.layout.map_of(x) for x in (output, whole))):
            self._replay.forget()
            self.notes.append("the network does not repeat its own numbers, so every candidate was run as a whole")
        return whole


def choose(bench: Bench, candidates: Sequence[Candidate], images: Sequence[int]) -> list[tuple[Candidate, list[int]]]:
    """Halve the field on growing parts of the images.

    Returns:
        Every candidate with the images that it was last measured on, the best first.
    """
    order = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    metric = bench.task.metrics[0]
    running = list(candidates)
    out: list[tuple[Candidate, list[int]]] = []
    counts = _counts(len(running), len(order))
    for number, count in enumerate(counts, start=1):
        seen = sorted(order[:count])
        bench.measure(running, seen, f"round {number} of {len(counts)}: {len(running)} swaps, {count} images")
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


def _differs(x: torch.Tensor, whole: torch.Tensor) -> bool:
    finite = whole[whole.isfinite()].abs()
    slack = _SAME * float(finite.max()) if finite.numel() else 0.0
    return x.shape != whole.shape or not torch.allclose(
        x.double(), whole.double(), rtol=0, atol=slack, equal_nan=True
    )
