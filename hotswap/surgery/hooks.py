"""Carries out a plan with module hooks: for networks that cannot be traced, or are entered past `forward`.

A guide is caught where its module returns, and each target gets it just before it runs; see `passes`. Calls of
`F.interpolate` are handed over to guided layers; see `hand_over`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Inputs, Observation
from hotswap.network.names import relative
from hotswap.surgery import guide_hooks, hand_over, install, slots
from hotswap.surgery.activations import NextActivation, notes_of, with_taps
from hotswap.surgery.passes import Passes
from hotswap.surgery.scope import called_root, check_fits, inside_paths
from hotswap.surgery.slots import Slot, slots_of
from hotswap.targets.enlargement_checks import located
from hotswap.targets.entries import Swap
from hotswap.targets.plan import Plan
from hotswap.targets.sites import find


@dataclass(frozen=True)
class Steering:
    """The hooks of one conversion, to be found and undone."""

    passes: Passes
    rewritten: tuple[str, ...]  # paths of GraphModules, in the root

    def lost(self, root: nn.Module) -> list[str]:
        """Targets and guides whose hooks are gone, as their modules were replaced."""
        return guide_hooks.lost(self.passes, root)

    def undo(self, root: nn.Module) -> None:
        """Take the hooks away."""
        guide_hooks.detach(self.passes, root)
        hand_over.detach(self.passes, root, self.rewritten)


@dataclass(frozen=True)
class Graft(install.Graft):
    """A plan as hooks; a call of the module around guides and targets is a pass."""

    readers: Mapping[Slot, Mapping[str, int]]
    activations: Mapping[tuple[Slot, str], Collection[int]]
    calls: hand_over.Calls  # of F.interpolate

    @property
    def note(self) -> str:
        """Where guides are caught, for people."""
        what = "guides" if self.plan.swaps else "guides of the enlargements"
        return f"{what} are caught by hooks, within calls of {self.root_path or 'the network'}"

    def attach(self, model: nn.Module, root: nn.Module) -> Steering:
        """Register the hooks."""
        passes = Passes(self.readers, self.activations)
        guide_hooks.attach(passes, model, root)
        for entry in self.plan.entries:
            if isinstance(entry, Swap) or entry.call is None:
                guide_hooks.give(passes, entry.name, slots_of(entry), model.get_submodule(entry.target))
        rewritten = self.calls.attach(passes, model)
        return Steering(passes, tuple(relative(path, self.root_path) for path in rewritten))


def prepare(
    model: nn.Module,
    plan: Plan,
    observation: Observation | None,
    example_inputs: Inputs | None,
    by_fx: Collection[str] = (),
) -> Graft:
    """Check a plan and find where its guides are caught, changing nothing in the network.

    Args:
        model: the network.
        plan: what to swap: convolutions or enlargements. Where it does not say at which activations its guides are
            caught, a run finds them.
        observation: one run of the network, if it could be run.
        example_inputs: what it was run on.
        by_fx: targets that were swapped by fx before, whose guides must be what they were.

    Raises:
        HotswapError: where the plan cannot be carried out on this network, with the reason.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    check_fits(modules, plan)
    events = [] if observation is None else [call.path for call in observation.calls]
    sites = None
    if plan.resizes:
        sites = find(model, example_inputs, plan.resizes)
        plan, events = replace(plan, resizes=located(model, plan.resizes, sites)), list(sites.events)
    inside = inside_paths(modules, plan)
    root_path = called_root(modules, plan, inside, observation)
    for path in {root_path, *inside}:
        if isinstance(modules[path], torch.jit.ScriptModule):
            raise HotswapError(f"module {path or 'the network'!r} is a ScriptModule, which takes no hooks")
    entries: Sequence[Any]
    entries, following = with_taps(model, plan.entries, example_inputs)
    swaps, resizes = tuple(entries[: len(plan.swaps)]), tuple(entries[len(plan.swaps) :])
    _check_as_by_fx(swaps, following, by_fx)
    plan = replace(plan, swaps=swaps, resizes=resizes).noted(*notes_of(following))
    readers = slots.readers(entries, events)
    for slot in readers:
        if slot.tap is not None and slot.tap[0] not in modules:
            raise HotswapError(f"the plan catches a guide at {slot.tap[0]!r}, which is no module of this network")
    calls = hand_over.Calls() if sites is None else hand_over.find_calls(modules, plan.resizes, sites)
    return Graft(plan, root_path, readers, slots.activations(entries, events), calls)


def _check_as_by_fx(swaps: Sequence[Swap], following: Mapping[str, NextActivation], by_fx: Collection[str]) -> None:
    for swap in swaps:
        for source in swap.guide:
            by_function = source in following and following[source].by_function
            if swap.target in by_fx and swap.after_activation and by_function:
                raise HotswapError(
                    f"target {swap.target!r} was swapped by fx, with guide {source!r} after a function that hooks "
                    'cannot catch; name further targets with method="fx", or hotswap.revert the network first'
                )
