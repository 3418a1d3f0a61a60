"""Puts a prepared plan into a network, recognises it there, and takes it out.

`install` only reassigns classes, registers hooks and leaves a record; `remove` reassigns and removes them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from torch import nn

from hotswap.errors import HotswapError, replaced
from hotswap.network.dry_run import device_of
from hotswap.network.names import INPUT, joined, relative
from hotswap.surgery import regraphing
from hotswap.targets import convolution
from hotswap.targets import enlargement as enlarging
from hotswap.targets import output as refined
from hotswap.targets.plan import Plan

# Plain attributes, which are not in a state_dict:
RECORDS = "_hotswap_records"  # of a module around guides and targets
CALLS = "_hotswap_resize_calls"  # of a module whose calls of F.interpolate are handed over, see `hand_over`

_SWAPPED = (convolution.SwappedLayer, enlarging.GuidedResize)


class Steering(Protocol):
    """The hooks or the code by which guides reach targets in a network."""

    def lost(self, root: nn.Module) -> list[str]:
        """Targets and guides that no longer reach each other, as a module was replaced; as messages name them."""

    def undo(self, root: nn.Module) -> None:
        """Take it away again, from the module it is in or a copy of it."""


@dataclass(frozen=True)
class Graft:
    """A plan made ready for one network: all that is left is to install it."""

    plan: Plan
    root_path: str  # of the module around guides and targets

    @property
    def note(self) -> str:
        """How the plan is carried out, for people."""
        raise NotImplementedError

    def noted(self, *notes: str) -> Self:
        """This graft with more notes in its plan."""
        return replace(self, plan=self.plan.noted(*notes))

    def attach(self, model: nn.Module, root: nn.Module) -> Steering:
        """Make the guides reach the targets, in place, in the network it was prepared for or a deep copy of it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Record:
    """The record that `install` leaves in the module around guides and targets."""

    plan: Plan
    root_path: str  # of that module, in the network the plan was made for
    steering: Steering

    def lost(self, root: nn.Module) -> list[str]:
        """Targets, guides and modules of the plan that were replaced since in that module, as messages name them."""
        there = {path for path, module in root.named_modules() if isinstance(module, _SWAPPED)}
        known = {module.swap.name for module in root.modules() if isinstance(module, _SWAPPED)}
        gone = [
            f"target {entry.name!r}"
            for entry in self.plan.entries
            if relative(entry.layer_path, self.root_path) not in there and entry.name not in known
        ]
        return list(dict.fromkeys([*gone, *self.steering.lost(root)]))

    def planned_at(self, path: str, model: nn.Module) -> Plan:
        """The plan with scales as they are, for a network that has the module at `path`.

        It may have moved since: into a wrapper, or out of the network.
        """

        def moved(inside: str) -> str:
            return joined(path, relative(inside, self.root_path))

        def now(entry: Any) -> Any:
            target = moved(entry.target)
            layer = model.get_submodule(replace(entry, target=target).layer_path)
            current = layer.swap if isinstance(layer, _SWAPPED) else entry
            guide = tuple(source if source == INPUT else moved(source) for source in entry.guide)
            taps = tuple(tap and (moved(tap[0]), tap[1]) for tap in entry.taps)
            return replace(current, target=target, guide=guide, taps=taps)

        output = self.plan.output
        if output is not None and isinstance(
            layer := model.get_submodule(path)._modules.get(refined.NAME), refined.Refined
        ):
            output = layer.entry
        swaps, resizes = (tuple(map(now, entries)) for entries in (self.plan.swaps, self.plan.resizes))
        return replace(self.plan, swaps=swaps, resizes=resizes, output=output)


def records(model: nn.Module) -> list[tuple[str, nn.Module, Record]]:
    """Path of the module it is in, that module, and each record of a network, as they were installed."""
    installed = [(path, m, record) for path, m in model.named_modules() for record in m.__dict__.get(RECORDS, ())]
    return sorted(installed, key=lambda item: bool(item[2].plan.swaps))  # enlargements come first


def install(model: nn.Module, graft: Graft) -> None:
    """Carry a prepared plan out, in place, on the network it was prepared for (or a deep copy of it).

    Nothing steers the network's layers yet, or any more (see `detach`). Those that are swapped already stay as they
    are, and are steered by the plan from now on, which must name them.
    """
    device = device_of(model)
    for swap in graft.plan.swaps:
        target = model.get_submodule(swap.target)
        if not isinstance(target, convolution.SwappedLayer):
            convolution.swap_in(target, swap, device)
    guided = {path for path, module in model.named_modules() if isinstance(module, enlarging.GuidedResize)}
    for resize in graft.plan.resizes:
        if resize.layer_path not in guided:
            enlarging.swap_in(model, resize, device)
    if graft.plan.output is not None and refined.NAME not in model._modules:
        model.add_module(refined.NAME, refined.layer_of(graft.plan.output, device).train(model.training))
    root = model.get_submodule(graft.root_path)
    record = Record(graft.plan, graft.root_path, graft.attach(model, root))
    root.__dict__[RECORDS] = (*root.__dict__.get(RECORDS, ()), record)
    regraphing.keep_whole(model)


def remove(model: nn.Module) -> None:
    """Make every swapped part of a network plain again, in place, with its current weights."""
    detach(model)
    for module in model.modules():
        if isinstance(module, convolution.SwappedLayer):
            convolution.swap_out(module)
    enlarging.swap_out(model)
    for module in list(model.modules()):
        module._modules.pop(refined.NAME, None)


def detach(model: nn.Module) -> None:
    """Undo what steers swapped layers, in place; the layers themselves stay swapped.

    Raises:
        HotswapError: where it cannot be undone, as a graph was edited since; nothing has changed then.
    """
    regraphing.require_unedited(model)
    for _, module, record in reversed(records(model)):
        module.__dict__.pop(RECORDS, None)
        record.steering.undo(module)
    regraphing.release(model)


def require_own_input(model: nn.Module) -> None:
    """Refuse a network in which a guide is the first argument of an inner module: a plan cannot name that.

    Raises:
        HotswapError: where one is.
    """
    for path, _, record in records(model):
        if record.root_path != path and any(INPUT in entry.guide for entry in record.plan.entries):
            raise HotswapError(
                f"a guide is the input of module {path!r}, which was converted by itself, and a plan can only name "
                "the input of the whole network; do this with that module alone, or hotswap.revert it first"
            )


def current_plan(model: nn.Module) -> Plan | None:
    """The swaps a network carries now, with paths from this network and scales as they are; None if none.

    Raises:
        HotswapError: where a module that they need was replaced since.
    """
    if lost := [name for _, module, record in records(model) for name in record.lost(module)]:
        raise HotswapError(replaced(lost))
    plan = Plan.joined([record.planned_at(path, model) for path, _, record in records(model)])
    if not plan.entries and plan.output is None:
        return None
    measured = all(entry.deviation is not None for entry in plan.entries)  # nothing was set by hand since
    return plan if measured else replace(plan, drift=None)


def record_drift(model: nn.Module, drift: float | None) -> None:
    """Keep how far a swapped network's outputs are from its plain self's, for `current_plan` to tell."""
    _replan(model, lambda plan: replace(plan, drift=drift))


def record_note(model: nn.Module, outdated: str, note: str) -> None:
    """Put a note in the place of those that begin with `outdated`."""

    def noted(plan: Plan) -> Plan:
        notes = (note if kept.startswith(outdated) else kept for kept in plan.notes)
        return replace(plan, notes=tuple(dict.fromkeys(notes)))

    _replan(model, noted)


def _replan(model: nn.Module, change: Callable[[Plan], Plan]) -> None:
    for module in model.modules():
        if kept := module.__dict__.get(RECORDS):
            module.__dict__[RECORDS] = tuple(replace(record, plan=change(record.plan)) for record in kept)
