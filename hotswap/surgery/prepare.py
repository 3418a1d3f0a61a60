"""Prepares a plan for a network by fx or hooks, and tries it on a copy before anything changes."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from torch import nn

from hotswap.choices import FX, HOOKS
from hotswap.errors import HotswapError
from hotswap.network.copying import checked_copy
from hotswap.network.dry_run import Inputs, Observation, observe
from hotswap.network.names import AUTO
from hotswap.surgery import graph, hooks, install, refinement
from hotswap.surgery.install import Graft
from hotswap.surgery.self_check import DiffersError, SelfCheck
from hotswap.surgery.tracing import UntraceableError
from hotswap.targets.lookup import Names
from hotswap.targets.plan import Plan

Model = TypeVar("Model", bound=nn.Module)
IN_PLACE = "; pass inplace=True"  # what to do where a network cannot be copied


class Prepared(NamedTuple):
    """A plan prepared for one network: its enlargements, then its convolutions."""

    grafts: tuple[Graft, ...]

    @property
    def plan(self) -> Plan:
        """The whole plan."""
        return Plan.joined([graft.plan for graft in self.grafts])

    def noted(self, *notes: str) -> "Prepared":
        """The preparation with more notes in its plan."""
        *others, last = self.grafts
        return Prepared((*others, last.noted(*notes)))


@dataclass(frozen=True)
class Preparation:
    """How plans are prepared: what the network is run on, and how a swapped copy is tried."""

    example_inputs: Inputs | None
    check: SelfCheck | None
    by_fx: Collection[str] = ()  # targets that were swapped by fx before: see `hooks.prepare`

    def prepare(self, names: Names, plan: Plan, method: str) -> Prepared:
        """Check a plan to the end, and change nothing."""
        by = HOOKS if any(resize.taps for resize in plan.resizes) else AUTO  # as they were before, if they were
        try:
            return self._in_turn(names, plan, by, method)
        except HotswapError as error:
            if not (plan.resizes and plan.swaps) or by == HOOKS or method == FX:
                raise
            try:  # a graph for the enlargements may have the code of a module that is a guide, and not call it
                prepared = self._in_turn(names, plan, HOOKS, method)
            except HotswapError:
                raise error from None
            return prepared.noted(f"enlargements not by fx: {error}")

    def _in_turn(self, names: Names, plan: Plan, by: str, method: str) -> Prepared:
        """Prepare the enlargements of a plan by one method, then its convolutions by another."""
        grafts: list[Graft] = []
        if plan.resizes:
            part = replace(plan, swaps=(), method=FX, notes=() if plan.swaps else plan.notes, output=None)
            graft, names = self._by_method(names, part, plan, by)
            grafts.append(graft)
        if plan.swaps:  # on what the enlargements make of the network
            part = replace(plan, resizes=(), output=None)
            graft, names = self._by_method(names, part, part, method)
            grafts.append(graft)
        if plan.output is not None:
            grafts.append(self._refined(names, plan))
        prepared = Prepared(tuple(grafts))
        notes = () if self.check is None else self.check.notes
        return prepared.noted(*(note for note in notes if note not in prepared.plan.notes))

    def _refined(self, names: Names, plan: Plan) -> Graft:
        """Prepare the refinement of the output, and try it on a copy."""
        notes = () if plan.swaps or plan.resizes else plan.notes
        graft = refinement.Graft(replace(plan, swaps=(), resizes=(), notes=notes, enlargements=()), "")
        if self.check is not None:
            twin = sharing_weights(names.model)
            install.install(twin, graft)
            self.check.compare(twin)
        return graft

    def _by_method(self, names: Names, part: Plan, called: Plan, method: str) -> tuple[Graft, Names]:
        """Prepare a part of a plan, and try it on a copy, which must call all targets of the plan `called`."""
        what, refused = ("", HotswapError) if part.swaps else ("enlargements ", (UntraceableError, DiffersError))
        if method != HOOKS:
            try:
                graft = graph.prepare(names.model, part, names.observation, self.example_inputs)
                if method == AUTO and graft.required:  # labels, say, which come in training alone
                    needed = " and ".join(graft.required)
                    raise UntraceableError(
                        f"every call would then need {needed}, which the example has and which is None by default"
                    )
                return self._tried(names, graft, called)
            except refused as error:
                if method == FX and isinstance(error, DiffersError):
                    told = f'rewritten by fx, the network is not itself: {error}; use method="hooks"'
                    raise DiffersError(told) from error
                if method == FX:
                    raise
                part = part.noted(f"{what}not by fx: {error}")
        part = replace(part, method=HOOKS) if part.swaps else part
        caught = hooks.prepare(names.model, part, names.observation, self.example_inputs, self.by_fx)
        return self._tried(names, caught, called)

    def _tried(self, names: Names, graft: Graft, called: Plan) -> tuple[Graft, Names]:
        """Carry out a plan on a copy that shares all weights, and run it; returns that copy too."""
        if names.observation is None and graft.plan.swaps:
            return graft, names
        try:
            twin = sharing_weights(names.model)
        except HotswapError:
            if graft.plan.resizes:
                raise
            # Which is said where it matters: it can still be converted in place.
            return graft.noted("not tried on a copy first: the network cannot be copied"), names
        install.install(twin, graft)
        if names.observation is None:
            return graft, replace(names, model=twin)
        observation = _check_runs(twin, names.observation, self.example_inputs, called)
        if self.check is not None:
            self.check.compare(twin)
        return graft, replace(names, model=twin, observation=observation)  # a graph may call fewer modules


def sharing_weights(model: Model) -> Model:
    """A copy of the modules that shares all weights.

    Raises:
        HotswapError: where the network cannot be copied.
    """
    return checked_copy(model, {id(x): x for x in (*model.parameters(), *model.buffers())}, hint=IN_PLACE)


def carry_out(model: Model, prepared: Prepared, inplace: bool) -> Model:
    """Convert the network itself, or a deep copy of it.

    Raises:
        HotswapError: where it cannot be copied.
    """
    converted = model if inplace else checked_copy(model, hint=IN_PLACE)
    install.detach(converted)
    for graft in prepared.grafts:
        install.install(converted, graft)
    return converted


def _check_runs(converted: nn.Module, before: Observation, example_inputs: Inputs | None, plan: Plan) -> Observation:
    """Run the swapped network once, and compare its calls and outputs with the plain run."""
    after = observe(converted, example_inputs)
    for swap in plan.swaps:  # a rewritten forward may have taken in the code of one that holds another's guide
        now, once = after.count(swap.target), before.count(swap.target)
        if now != once:
            raise UntraceableError(
                f"target {swap.target!r} is called {now} times once the network is rewritten, and {once} times before"
            )
    for resize in plan.resizes:
        if after.count(resize.layer_path) == 0:
            raise UntraceableError(f"target {resize.name!r} is not called once the network is rewritten")
    types = {call.path: call.output_type for call in before.calls}
    for call in after.calls:
        if call.output_type is not types.get(call.path, call.output_type):  # a guided F.interpolate is a new module
            raise UntraceableError(
                f"{call.path or 'the network'} gives a {call.output_type.__name__} once it is rewritten, and gave a "
                f'{types[call.path].__name__}; use method="hooks"'
            )
    if before.calls[-1].output_shape != after.calls[-1].output_shape:
        raise HotswapError(
            f"the swapped network gives {after.calls[-1].output_shape} where the plain one gives "
            f"{before.calls[-1].output_shape}; this is a bug in hotswap, please report it"
        )
    return after
