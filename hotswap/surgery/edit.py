"""Gives the calls of targets their guides, in the graph of a traced method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import nn
from torch.fx import Node

from hotswap.errors import HotswapError
from hotswap.network.names import INPUT, relative
from hotswap.surgery import call_nodes, graph_calls
from hotswap.surgery.activations import after_activation
from hotswap.surgery.path_tracer import OPENED, OpenedCall
from hotswap.surgery.scope import all_paths
from hotswap.targets import kernels
from hotswap.targets.entries import Resize, Swap
from hotswap.targets.forward_ops import guide_copy, image_size, require_input_only, shared_guides
from hotswap.targets.plan import Plan
from hotswap.targets.window import sliding_of


class _Reading(NamedTuple):
    """One call of a target, and the activations that are its guides."""

    target: Node
    activations: tuple[Node, ...]
    entry: Swap | Resize


@dataclass
class Edit:
    """The edit of one graph, in place."""

    graph: torch.fx.Graph
    root: nn.Module
    root_path: str  # in the network
    modules: Mapping[str, nn.Module]  # of the network, by path
    interpolations: call_nodes.Calls | None

    def give_guides(self, plan: Plan, opened: Sequence[OpenedCall]) -> Sequence[OpenedCall]:
        """Give every call of every target its guides.

        Returns:
            `opened`, the calls of modules that were traced through, as they are in the edited graph.

        Raises:
            HotswapError: where a target or a guide is never called, or it is not clear which call guides.
        """
        readings = self._readings(plan)
        guide_of: dict[Node, Node] = {}  # activation -> a copy, as the network may overwrite it later
        for reading in readings:
            for activation, source in zip(reading.activations, reading.entry.guide, strict=True):
                if activation not in guide_of:
                    with self.graph.inserting_after(activation):  # taken at once
                        copy = self.graph.call_function(guide_copy, (source, activation))
                    guide_of[activation] = _beside(activation, copy)
        guides = [tuple(guide_of[activation] for activation in reading.activations) for reading in readings]
        keys = [_alike(each, self.modules[r.entry.target], r.entry) for r, each in zip(readings, guides, strict=True)]
        latest: dict[tuple[Any, ...], Node] = {}  # distances that several targets share, by key
        replaced: dict[Node, Node] = {}
        for (target, _, entry), each, key in zip(readings, guides, keys, strict=True):
            if isinstance(entry, Resize) and entry.call is not None:
                layer_path = relative(entry.layer_path, self.root_path)
                replaced[target] = _beside(target, graph_calls.hand_over(target, layer_path, each))
                continue
            require_input_only(entry.name, target.args, target.kwargs)
            input = target.args[0] if target.args else target.kwargs["input"]
            given: Any = each
            if isinstance(entry, Swap) and keys.count(key) > 1:
                with self.graph.inserting_before(target):
                    size = _beside(target, self.graph.call_function(image_size, (entry.target, input)))
                    shared = (entry.guide, each, size, *key[1:], latest.get(key))
                    given = latest[key] = _beside(target, self.graph.call_function(shared_guides, shared))
            # By keyword, so that hooks see the arguments of the plain layer.
            target.args, target.kwargs = (input,), {"guides": given}
        self.graph.lint()
        return [call.renamed(replaced) for call in opened]

    def _readings(self, plan: Plan) -> list[_Reading]:
        """Calls of targets, in order."""
        position = {node: index for index, node in enumerate(self.graph.nodes)}
        calls: dict[int, list[Node]] = {}  # id of module -> its call nodes, in order
        for node in self.graph.nodes:
            if node.op == "call_module":
                calls.setdefault(id(self.root.get_submodule(str(node.target))), []).append(node)

        def activation(target: Node, entry: Swap | Resize, source: str) -> Node:
            if source == INPUT:
                return _image(self.graph, self.root)
            call = _guide_call(calls.get(id(self.modules[source]), []), source, target, entry, position)
            # A swap made by hooks says where its guide was caught; without a tap, as its module gave it.
            untapped = bool(entry.taps) and entry.taps[entry.guide.index(source)] is None
            tap = after_activation(call, self.root) if entry.after_activation and not untapped else call
            # The activation may come after the target: then the guide is as its module gives it.
            return tap if position[tap] < position[target] else call

        readings: list[_Reading] = []
        for entry in plan.entries:
            if self.interpolations is not None and isinstance(entry, Resize) and entry.call is not None:
                targets = self.interpolations.nodes(self.graph, all_paths(self.modules, entry.target), entry)
            else:
                targets = calls.get(id(self.modules[entry.target]), [])
            if not targets:
                raise _never_called(self.root, entry, plan)
            for target in targets:
                guides = tuple(activation(target, entry, source) for source in entry.guide)
                readings.append(_Reading(target, guides, entry))
        return sorted(readings, key=lambda reading: position[reading.target])


def _never_called(root: nn.Module, entry: Swap | Resize, plan: Plan) -> HotswapError:
    named = {path for swap in plan.swaps for path in (swap.target, *swap.guide)}
    inside = next((path for path in sorted(named) if path.startswith(f"{entry.target}.")), None)
    if inside is None:
        return HotswapError(f"target {entry.name!r} is never called by {type(root).__name__}; name one that is")
    return HotswapError(
        f"target {entry.name!r} holds {inside!r}, so that the rewritten forward has its code and does not call it; "
        'name a guide that is not inside a target, or use method="hooks"'
    )


def _alike(guides: tuple[Node, ...], target: nn.Module, entry: Swap | Resize) -> tuple[Any, ...]:
    """A key, equal for convolutions whose distances are equal where their inputs have one size."""
    if isinstance(entry, Resize):
        return (guides,)
    if entry.projection:  # of its own
        return guides, entry.target
    return guides, sliding_of(target), entry.resize, kernels.parse(entry.kernel).asymmetric


def _guide_call(
    guides: Sequence[Node], source: str, target: Node, entry: Swap | Resize, position: dict[Node, int]
) -> Node:
    """The call of the guide that belongs to one call of a target: the last one it is computed from, if any is."""
    before = [node for node in guides if position[node] < position[target]]
    if not before:
        if not guides:
            raise HotswapError(f"guide {source!r} is never called; name one that is")
        raise HotswapError(
            f"guide {source!r} is computed after target {entry.target!r} or from it; name a module that runs earlier"
        )
    if len(guides) == 1:
        return guides[0]
    sources = _sources(target)
    feeding = [node for node in before if node in sources]
    if feeding:
        return feeding[-1]
    raise HotswapError(
        f"guide {source!r} is called {len(guides)} times and target {entry.target!r} is computed from none of "
        "these calls, so it is not clear which should steer it; choose a guide that the target is computed from"
    )


def _sources(node: Node) -> set[Node]:
    """All nodes that a node is computed from."""
    sources: set[Node] = set()
    waiting = [node]
    while waiting:
        new = [source for source in waiting.pop().all_input_nodes if source not in sources]
        sources.update(new)
        waiting += new
    return sources


def _image(graph: torch.fx.Graph, root: nn.Module) -> Node:
    """The first argument of the rewritten method, as it receives it."""
    first: Node | None = next((node for node in graph.nodes if node.op == "placeholder"), None)
    if first is None:
        raise HotswapError(f"guide {INPUT!r} is the network's first argument, and {type(root).__name__} takes none")
    return first


def _beside(node: Node, new: Node) -> Node:
    """A new node, in the code of the call that another one is in."""
    new.meta[OPENED] = node.meta.get(OPENED, ())
    return new
