"""Carries a plan out on a graph.

`prepare` does everything that can fail, and changes nothing. The module whose method is rewritten keeps its class: it
becomes an instance of a generated subclass of it, whose one method is the graph's code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.fx
from torch import nn
from torch.fx import GraphModule

from hotswap.network.dry_run import Inputs, Observation
from hotswap.network.names import INPUT, relative
from hotswap.surgery import call_nodes, containers, install, past_forward, regraphing, rewriting
from hotswap.surgery.code import Code
from hotswap.surgery.containers import Split
from hotswap.surgery.edit import Edit
from hotswap.surgery.opening import open_and_trace
from hotswap.surgery.rewriting import MethodCode
from hotswap.surgery.scope import all_paths, called_root, check_fits, inside_paths, parents
from hotswap.surgery.tracing import Traced
from hotswap.surgery.whole import Parts, lists_in
from hotswap.targets.forward_ops import require_given
from hotswap.targets.plan import Plan


@dataclass(frozen=True)
class Graft(install.Graft):
    """A plan as graphs that take the place of a method."""

    traced: Traced
    names: call_nodes.Names  # of guided calls of F.interpolate
    graphs: Sequence[torch.fx.Graph]  # of the root's own code, in training and in evaluation
    method: MethodCode  # the same as code
    containers: Mapping[str, containers.Codes]  # of modules inside, by path in the root

    @property
    def note(self) -> str:
        """The method that is rewritten, for people."""
        where = f" of {self.root_path!r}" if self.root_path else ""
        what = "" if self.plan.swaps else " for the enlargements"
        return f"rewrites {type(self.traced.root).__name__}.{self.traced.method}{where}{what}"

    @property
    def required(self) -> list[str]:
        """Arguments that every call of the rewritten method needs, and that are None by default; not the first."""
        found: dict[str, None] = {}
        for graph in self.traced.graphs:
            first = next((node for node in graph.nodes if node.op == "placeholder"), None)
            given = [node.args[2] for node in graph.nodes if node.target is require_given]
            found |= {x.target: None for x in given if x is not first and x.args == (None,)}
        return list(found)

    def attach(self, model: nn.Module, root: nn.Module) -> "Rewritten":
        """Have `root`, and the modules inside that lead to a guide or a target, run the rewritten code."""
        root.__dict__.update(self.traced.constants)
        if not isinstance(root, GraphModule):
            rewriting.rewrite(root, self.traced.method, self.method)
        for path, names in self.names.items():
            owner = model.get_submodule(path)
            if not isinstance(owner, GraphModule):  # whose one method is forward
                past_forward.refuse(owner, names, forward=path != self.root_path)
        for path, codes in self.containers.items():
            containers.attach(root.get_submodule(path), codes)
        if isinstance(root, GraphModule):
            regraphing.rewrite(root, *self.graphs)
        return Rewritten(self.traced.method, tuple(self.traced.constants), tuple(self.containers), self.method.parts)


@dataclass(frozen=True)
class Rewritten:
    """The changes that `Graft.attach` made. Paths are relative to the root."""

    method: str
    constants: tuple[str, ...]  # attributes added for tensors that the traced code makes
    containers: tuple[str, ...]  # modules that are called with more than before
    parts: Parts

    def lost(self, root: nn.Module) -> list[str]:
        """Modules that must hand guides on and were replaced; a guide itself may be any module."""
        there = containers.attached(root)
        return [*(f"module {path!r}" for path in self.containers if path not in there), *self.parts.changed(root)]

    def undo(self, root: nn.Module) -> None:
        """Make the module plain again."""
        there = containers.attached(root)  # also where they were moved, into a wrapper perhaps
        for path in self.containers:
            if path in there:
                containers.detach(there[path])
        past_forward.allow(root)
        for name in self.constants:
            del root.__dict__[name]
        if isinstance(root, GraphModule):
            regraphing.undo(root)
        else:
            rewriting.undo(root, self.method)


def prepare(
    model: nn.Module, plan: Plan, observation: Observation | None, example_inputs: Inputs | None = None
) -> Graft:
    """Trace, check and edit graphs for a plan, changing nothing in the network.

    Args:
        model: the network.
        plan: what to swap: convolutions or enlargements.
        observation: one run of the network, if it could be run; finds the module to rewrite when some modules
            are only containers that are never called.
        example_inputs: what it was run on.

    Raises:
        HotswapError: where the plan cannot be carried out on this network, with the reason.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    check_fits(modules, plan)
    inside = inside_paths(modules, plan)
    root_path = called_root(modules, plan, inside, observation)
    root = modules[root_path]
    seen = {relative(path, root_path) for path in inside}
    opened = {parent for path in seen for parent in parents(path) if parent}
    if plan.swaps:
        from_input = any(INPUT in swap.guide for swap in plan.swaps)
        traced = open_and_trace(root_path, root, opened, seen, observation, from_input=from_input)
        calls = None
    else:
        # The modules whose forward makes a call are opened too.
        callers = all_paths(modules, *(resize.target for resize in plan.resizes if resize.call is not None))
        opened |= {relative(path, root_path) for path in callers if path != root_path}
        with call_nodes.Marker():
            traced = open_and_trace(root_path, root, opened, None, observation)
        calls, resizes = call_nodes.find_calls(model, plan.resizes, traced, root_path, observation, example_inputs)
        plan = replace(plan, resizes=resizes)
    trained = tuple(r for r in plan.resizes if calls is not None and calls.in_training(traced, modules, r))
    plans = (replace(plan, resizes=trained), plan)
    opened_calls = [
        Edit(graph, root, root_path, modules, calls).give_guides(each, called)
        for graph, each, called in zip(traced.graphs, plans, traced.calls, strict=True)
    ]
    traced = replace(traced, calls=(opened_calls[0], opened_calls[1]))
    names = {} if calls is None else calls.names(plan.resizes)
    return Graft(plan, root_path, traced, names, *_codes(plan, root_path, traced))


# --- the code -------------------------------------------------------------------------------------------


def _codes(
    plan: Plan, root_path: str, traced: Traced
) -> tuple[list[torch.fx.Graph], MethodCode, dict[str, containers.Codes]]:
    """The edited graphs and code of the root, and the code of the modules inside."""
    split = Split(traced.root)
    graphs = [split.take_apart(graph, calls) for graph, calls in zip(traced.graphs, traced.calls, strict=True)]
    training, evaluation = map(Code.of, graphs)
    steered = (*split.codes, *(relative(entry.layer_path, root_path) for entry in plan.entries))
    parts = Parts(steered, lists_in(traced.root, traced.opened), tuple(sorted(split.swallowed)))
    method = MethodCode(evaluation if training == evaluation else training, evaluation, traced.opened, parts)
    return graphs, method, {path: containers.Codes(path, tuple(codes)) for path, codes in split.codes.items()}
