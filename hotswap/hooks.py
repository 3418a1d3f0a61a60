"""Carries a plan out with module hooks: for networks that cannot be traced, or are entered past their `forward`.

A guide is caught where its module returns, and each target gets it just before it runs; see `relay`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from hotswap import relay
from hotswap.errors import HotswapError
from hotswap.following import Following, notes_of, with_taps
from hotswap.observe import Inputs, Observation
from hotswap.placing import called_root, check_swaps, inside_paths
from hotswap.relay import Reading, Relay, Slot, slots_of
from hotswap.targets.plan import Plan, Swap

# --- the plan -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What is left in the module around guide and targets, to know and to undo the conversion by."""

    plan: Plan
    root_path: str
    relay: Relay

    def undo(self, root: nn.Module) -> None:
        """Take the hooks away."""
        relay.detach(self.relay, root)

    def planned(self, plan: Plan) -> Self:
        """The same for another plan."""
        return replace(self, plan=plan)


@dataclass(frozen=True)
class Graft:
    """A plan made ready for one network: all that is left is to install it."""

    plan: Plan
    root_path: str  # of the module whose call is a pass
    readers: Mapping[Slot, Mapping[str, int]]
    activations: Mapping[tuple[Slot, str], Collection[int]]

    @property
    def note(self) -> str:
        """How the plan is carried out, for people."""
        return f"guides are caught by hooks, within calls of {self.root_path or 'the network'}"

    def noted(self, *notes: str) -> Self:
        """The same with more notes in its plan."""
        return replace(self, plan=self.plan.noted(*notes))

    def attach(self, model: nn.Module, root: nn.Module) -> Record:
        """Register the hooks."""
        own = Relay(self.readers, self.activations)
        relay.attach(own, model, root)
        for swap in self.plan.swaps:
            relay.give(own, swap.target, slots_of(swap), model.get_submodule(swap.target))
        return Record(self.plan, self.root_path, own)


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
        plan: what to swap. Where it does not say at which activations its guides are caught, a run finds them.
        observation: one run of the network, if it could be run.
        example_inputs: what it was run on.
        by_fx: targets that were swapped by fx before, whose guides must be what they were.

    Raises:
        HotswapError: where the plan cannot be carried out on this network, with the reason.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    check_swaps(modules, plan)
    inside = inside_paths(modules, plan)
    root_path = called_root(modules, plan, inside, observation)
    for path in {root_path, *inside}:
        if isinstance(modules[path], torch.jit.ScriptModule):
            raise HotswapError(f"module {path or 'the network'!r} is a ScriptModule, which takes no hooks")
    swaps, found = with_taps(model, plan.swaps, example_inputs)
    _check_as_by_fx(swaps, found, by_fx)
    plan = replace(plan, swaps=swaps).noted(*notes_of(found))
    targets = [Reading(swap.target, slots_of(swap)) for swap in swaps]
    events = [] if observation is None else [call.path for call in observation.calls]
    readers = relay.readers(targets, events)
    relay.check_slots(modules, readers)
    return Graft(plan, root_path, readers, relay.activations(targets, events))


def _check_as_by_fx(swaps: Sequence[Swap], found: Mapping[str, Following], by_fx: Collection[str]) -> None:
    for swap in swaps:
        for source in swap.guide:
            if swap.target in by_fx and swap.after_activation and source in found and found[source].by_function:
                raise HotswapError(
                    f"target {swap.target!r} was swapped by fx, with guide {source!r} after a function that hooks "
                    'cannot catch; name further targets with method="fx", or hotswap.revert the network first'
                )
