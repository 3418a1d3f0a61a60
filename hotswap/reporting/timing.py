"""Time and memory of calls."""

import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ROUNDS, MOST_ROUNDS = 5, 25  # of runs: at least, and at most where they are short
_ENOUGH = 0.1  # seconds in all, after which short runs end

Run = Callable[[], object]


@dataclass(frozen=True)
class Use:
    """The time and memory of one call."""

    milliseconds: float  # the median
    bytes: int  # peak memory of the tensors it created
    spread: float  # quartile range, relative to the median


def measured(runs: Sequence[Run], device: torch.device) -> list[Use]:
    """Run all in turn, several times, after one warm-up each."""
    bytes_ = [peak(run) for run in runs]
    times: list[list[float]] = [[] for _ in runs]
    for number in range(MOST_ROUNDS):
        if number >= ROUNDS and sum(map(sum, times)) > _ENOUGH:
            break
        first = number % len(runs)  # so that none always runs with the same caches
        for which in (*range(first, len(runs)), *range(first)):
            times[which].append(_seconds(runs[which], device))
    return [Use(statistics.median(t) * 1e3, b, _spread(t)) for t, b in zip(times, bytes_, strict=True)]


def _spread(times: list[float]) -> float:
    first, middle, third = statistics.quantiles(times, n=4, method="inclusive")
    return (third - first) / max(middle, 1e-12)


def _seconds(run: Run, device: torch.device) -> float:
    _finish(device)
    began = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak(run: Run) -> int:
    """Peak memory of the tensors that a call creates, in bytes, without scratch space inside operations."""
    with _Alive() as alive:
        run()
    return int(alive.most)


class _Alive(TorchDispatchMode):
    """Adds up the memory of tensors created under it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {x.untyped_storage()._cdata for x in _dense((args, kwargs))}
        output = func(*args, **kwargs)
        for x in _dense(output):
            storage = x.untyped_storage()
            if storage._cdata not in given | self._known:
                self._add(storage)
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _dense(values: Any) -> list[Tensor]:
    """The dense tensors in nested values."""
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor) and x.layout == torch.strided]
