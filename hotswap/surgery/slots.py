"""Where guides are caught, and how often each target reads them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hotswap.targets.guided_layer import Entry, Tap


class Slot(NamedTuple):
    """A place where a guide is caught: the output of a module or of the activation after it, or the image."""

    source: str  # module path, or INPUT
    tap: Tap | None


def slots_of(entry: Entry) -> tuple[Slot, ...]:
    """The slots of the guides of a Swap or a Resize."""
    return tuple(Slot(source, tap) for source, tap in zip(entry.guide, entry.taps, strict=True))


def readers(entries: Iterable[Entry], events: Sequence[str]) -> dict[Slot, dict[str, int]]:
    """The targets of each slot, and how often each reads it before it is caught anew.

    Args:
        entries: of a plan.
        events: of one run of the network, in order: paths of modules whose calls ended, and names of such calls.
    """
    reads: dict[Slot, dict[str, int]] = {}
    for entry in entries:
        for slot in slots_of(entry):
            count, most = 0, 1
            for event in events:
                count = 0 if event == slot.source else count + (event == entry.name)
                most = max(most, count)
            reads.setdefault(slot, {})[entry.name] = most
    return reads


def activations(entries: Iterable[Entry], events: Sequence[str]) -> dict[tuple[Slot, str], frozenset[int]]:
    """Numbers of calls of an activation between guide and target, for each slot at one and each target of it.

    See `readers`.
    """
    calls: dict[tuple[Slot, str], frozenset[int]] = {}
    for entry in entries:
        for slot in slots_of(entry):
            if slot.tap is None:
                continue
            count, counts = 0, set[int]()
            for event in events:
                count = 0 if event == slot.source else count + (event == slot.tap[0])
                if event == entry.name:
                    counts.add(count)
            if counts:
                calls[slot, entry.name] = frozenset(counts)
    return calls
