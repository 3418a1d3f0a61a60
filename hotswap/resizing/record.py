"""What a network carries of guided enlargements: to be known, and undone, by."""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import nn

from hotswap.naming import INPUT
from hotswap.regraphing import keep_whole
from hotswap.resizing.layers import GuidedResize, swap_in
from hotswap.resizing.plan import Resize
from hotswap.targets.plan import Plan

# Plain attributes, which are not in a state_dict:
RECORD = "_hotswap_resize_record"  # of the module around guides and enlargements
CALLS = "_hotswap_resize_calls"  # of a module whose calls of F.interpolate are handed over, see `hooks`


class Steering(Protocol):
    """What makes the guides of a network reach its enlargements."""

    def undo(self, root: nn.Module) -> None:
        """Take it away again, from the module it is in or a copy of it."""


@dataclass(frozen=True)
class Record:
    """Left in the module around guides and enlargements."""

    resizes: tuple[Resize, ...]
    notes: tuple[str, ...]
    root_path: str  # of that module, in the network the plan was made for
    steering: Steering
    drift: float | None = None  # as measured by `calibrate`


class Prepared(Protocol):
    """Enlargements made ready for one network, by `surgery` or by `hooks`: all that is left is to install them."""

    @property
    def resizes(self) -> tuple[Resize, ...]:
        """What is guided."""

    @property
    def root_path(self) -> str:
        """The module around guides and enlargements."""

    @property
    def notes(self) -> tuple[str, ...]:
        """For people."""

    @property
    def drift(self) -> float | None:
        """As the plan has it."""

    def attach(self, model: nn.Module, root: nn.Module) -> Steering:
        """Make the guides reach the enlargements, in place."""


def install(model: nn.Module, prepared: Prepared) -> None:
    """Carry a prepared plan out, in place, on the network it was prepared for (or a deep copy of it).

    What is swapped already stays as it is, as in `hotswap.surgery.install`.
    """
    guided = {path for path, module in model.named_modules() if isinstance(module, GuidedResize)}
    for resize in prepared.resizes:
        if resize.layer_path not in guided:
            swap_in(model, resize)
    root = model.get_submodule(prepared.root_path)
    steering = prepared.attach(model, root)
    root.__dict__[RECORD] = Record(prepared.resizes, prepared.notes, prepared.root_path, steering, prepared.drift)
    keep_whole(model)


def of(module: nn.Module) -> Record | None:
    """What was left in a module."""
    found: Record | None = module.__dict__.get(RECORD)
    return found


def joined(plan: Plan | None, model: nn.Module) -> Plan | None:
    """The plan of a network's convolutions with the enlargements it guides; None where neither is swapped.

    With paths from this network and scales as they are.
    """
    resizes: list[Resize] = []
    notes: list[str] = []
    drift = None if plan is None else plan.drift
    for path, module in model.named_modules():
        record = of(module)
        if record is None:
            continue
        # The rewritten module may have moved since: into a wrapper, or out of the network.
        for resize in record.resizes:
            target = _moved(resize.target, record.root_path, path)
            guide = tuple(s if s == INPUT else _moved(s, record.root_path, path) for s in resize.guide)
            layer = model.get_submodule(replace(resize, target=target).layer_path)
            now = layer.swap if isinstance(layer, GuidedResize) else resize
            taps = tuple(tap and (_moved(tap[0], record.root_path, path), tap[1]) for tap in resize.taps)
            resizes.append(replace(now, target=target, guide=guide, taps=taps))
        notes += record.notes
        drift = record.drift if drift is None else drift
    if not resizes:
        return plan
    swaps = () if plan is None else plan.swaps
    measured = None not in [x.deviation for x in swaps] + [x.deviation for x in resizes]  # none was set by hand since
    others = () if plan is None else plan.notes
    made = Plan(swaps) if plan is None else plan
    return replace(made, drift=drift if measured else None, notes=(*notes, *others), resizes=tuple(resizes))


def record_drift(model: nn.Module, drift: float | None) -> None:
    """Keep how far the outputs are from the plain network's, for `joined` to tell."""
    for module in model.modules():
        record = of(module)
        if record is not None:
            module.__dict__[RECORD] = replace(record, drift=drift)


def detach(model: nn.Module) -> None:
    """Undo what steers a network's guided enlargements, in place; these stay swapped."""
    for module in list(model.modules()):
        record: Record | None = module.__dict__.pop(RECORD, None)
        if record is not None:
            record.steering.undo(module)


def _moved(path: str, before: str, now: str) -> str:
    relative = path.removeprefix(before).removeprefix(".")
    return ".".join(part for part in (now, relative) if part)
