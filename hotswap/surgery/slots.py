"""Where guides are caught, and how often each target reads them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from hotswap.errors import HotswapError
from hotswap.targets.guided_layer import Tap


class Slot(NamedTuple):
    """A place where a guide is caught: the output of a module or of the activation after it, or the image."""

    source: str  # module path, or INPUT
    tap: Tap | None


def slots_of(entry: Any) -> tuple[Slot, ...]:
    """The slots of the guides of a Swap or a Resize."""
    return tuple(Slot(source, tap) for source, tap in zip(entry.guide, entry.taps, strict=True))


def check_slots(modules: Mapping[str, nn.Module], slots: Iterable[Slot]) -> None:
    """Check that a network, given by its modules' paths, has the activations that guides are caught at.

    Raises:
        HotswapError: where one is missing.
    """
    for slot in slots:
        if slot.tap is not None and slot.tap[0] not in modules:
            raise HotswapError(f"the plan catches a guide at {slot.tap[0]!r}, which is no module of this network")


class Reading(NamedTuple):
    """A target's name and guide slots, as `readers` needs them."""

    name: str  # a module's path, or of a call within a module's forward
    slots: tuple[Slot, ...]


def readers(targets: Iterable[Reading], events: Sequence[str]) -> dict[Slot, dict[str, int]]:
    """For each slot its targets, and how often each reads it before it is caught anew.

    Args:
        targets: what reads.
        events: of one run of the network, in order: paths of modules whose calls ended, and names of such calls.
    """
    reads: dict[Slot, dict[str, int]] = {}
    for target in targets:
        for slot in target.slots:
            count, most = 0, 1
            for event in events:
                count = 0 if event == slot.source else count + (event == target.name)
                most = max(most, count)
            reads.setdefault(slot, {})[target.name] = most
    return reads


def activations(targets: Iterable[Reading], events: Sequence[str]) -> dict[tuple[Slot, str], frozenset[int]]:
    """For each slot at an activation and each of its targets: the calls of the activation between guide and target.

    Args:
        targets: what reads.
        events: see `readers`.
    """
    calls: dict[tuple[Slot, str], frozenset[int]] = {}
    for target in targets:
        for slot in target.slots:
            if slot.tap is None:
                continue
            count, seen = 0, set[int]()
            for event in events:
                count = 0 if event == slot.source else count + (event == slot.tap[0])
                if event == target.name:
                    seen.add(count)
            if seen:
                calls[slot, target.name] = frozenset(seen)
    return calls
