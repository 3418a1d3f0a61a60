"""The calls of `F.interpolate` that a plan names, as nodes of a traced graph."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node, Proxy
from torch.overrides import TorchFunctionMode

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Inputs, Observation
from hotswap.network.names import joined
from hotswap.surgery import graph_calls
from hotswap.surgery.scope import all_paths
from hotswap.surgery.tracing import Traced, UntraceableError
from hotswap.targets.call_sites import chain_here, last_of
from hotswap.targets.enlargement_checks import check_mode, located
from hotswap.targets.entries import Resize
from hotswap.targets.sites import bound, find

_CHAIN = "hotswap_chain"  # in the metadata of a node of F.interpolate: the chain of its call
_Turns = Mapping[tuple[str, str], Collection[tuple[int, ...]]]  # see `Sites.turns`
Names = Mapping[str, Mapping[str, str]]  # of guided calls, by the module's path and the chain's key


@dataclass(frozen=True)
class Calls:
    """The calls of `F.interpolate` in a network, as traced graphs have them."""

    root_path: str  # of the traced module in the network
    turns: _Turns

    def nodes(self, graph: torch.fx.Graph, paths: Collection[str], resize: Resize) -> list[Node]:
        """The nodes of a guided call: one for each call of its module, which has these paths.

        Raises:
            UntraceableError: where other calls are made along its chain than when the network was run.
        """
        turns = self.turns.items()
        chains = {
            k: numbers for (path, k), numbers in turns if path in paths and any(resize.call in m for m in numbers)
        }
        meant = []
        for path, nodes in _forwards(graph, self.root_path):
            for key, runs in chains.items():
                along = [node for node in nodes if path in paths and node.meta[_CHAIN].key == key]
                if not along:
                    continue
                run, *others = runs
                if others or len(run) != len(along):
                    raise UntraceableError(
                        f"a graph calls F.interpolate {len(along)} times where target {resize.name!r} does "
                        f"({last_of(key)}), and the network {' or '.join(str(len(m)) for m in runs)} times"
                    )
                node = along[run.index(resize.call)]
                if resize.at[: len(at := node.meta[_CHAIN].at)] not in ((), at):
                    raise HotswapError(
                        f"target {resize.name!r} is called, by the plan, at {' > '.join(resize.at)}, and here at "
                        f"{' > '.join(at)}; give example_inputs, or convert the network anew if its code has changed"
                    )
                check_mode(resize, bound(node.args, node.kwargs)["mode"])
                meant.append(node)
        return meant

    def in_training(self, traced: Traced, modules: Mapping[str, nn.Module], resize: Resize) -> bool:
        """Whether a call that evaluation makes is made in training too; some networks enlarge scores in one alone.

        Raises:
            HotswapError: where training makes another call instead, which would stay as it is.
        """
        graphs, root = traced.graphs, traced.root
        if resize.call is None:
            called = (node for node in graphs[0].nodes if node.op == "call_module")
            return any(root.get_submodule(str(node.target)) is modules[resize.target] for node in called)
        paths = all_paths(modules, resize.target)
        if self.nodes(graphs[0], paths, resize):
            return True
        of_modes = [[nodes for path, nodes in _forwards(graph, self.root_path) if path in paths] for graph in graphs]
        keys, known = ({node.meta[_CHAIN].key for nodes in each for node in nodes} for each in of_modes)
        if keys <= known:
            return False
        raise HotswapError(
            f"target {resize.name!r} is a call of F.interpolate that {type(root).__name__} makes in evaluation, and "
            "in training it makes another, which would stay as it is; have its code make one call, whatever the mode"
        )

    def names(self, resizes: Sequence[Resize]) -> Names:
        """The names of guided calls."""
        names: dict[str, dict[str, str]] = {}
        for resize in resizes:
            for (path, key), runs in self.turns.items():
                if path == resize.target and any(resize.call in run for run in runs):
                    names.setdefault(path, {})[key] = repr(resize.name)
        return names


def find_calls(
    model: nn.Module,
    resizes: Sequence[Resize],
    traced: Traced,
    root_path: str,
    observation: Observation | None,
    example_inputs: Inputs | None,
) -> tuple[Calls, tuple[Resize, ...]]:
    """The calls in graphs that were traced under a `Marker`; and the enlargements with the places of their calls.

    Args:
        model: the network.
        resizes: what to guide.
        traced: a module of it.
        root_path: of that module.
        observation: one run of the network, if it could be run.
        example_inputs: what it was run on.
    """
    for graph in traced.graphs:
        _mark_calls_of_graphs(traced.root, graph)
    if observation is None:
        return Calls(root_path, _turns(traced.graphs[1], root_path)), tuple(resizes)
    sites = find(model, example_inputs, resizes)
    return Calls(root_path, sites.turns), located(model, resizes, sites)


class Marker(TorchFunctionMode):
    """Notes in each node of F.interpolate which chain of calls led to it.

    The code of a module can make more calls in training than in evaluation; the chain tells which is which.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.interpolate and isinstance(result, Proxy):
            result.node.meta[_CHAIN] = chain_here(traced=True)
        return result


def _mark_calls_of_graphs(root: nn.Module, graph: torch.fx.Graph) -> None:
    """Note the chains of calls in the graphs of GraphModules, whose code was not run under a `Marker`."""
    for path, nodes in _forwards(graph, ""):
        owner = root.get_submodule(path)
        if _CHAIN in nodes[0].meta or not isinstance(owner, GraphModule):
            continue
        chains = graph_calls.chains(owner)
        if len(chains) != len(nodes):
            raise UntraceableError(
                f"{type(owner).__name__} calls F.interpolate {len(nodes)} times in training and {len(chains)} in "
                "evaluation"
            )
        for node, chain in zip(nodes, chains, strict=True):
            node.meta[_CHAIN] = chain


def _forwards(graph: torch.fx.Graph, root_path: str) -> Iterator[tuple[str, list[Node]]]:
    """The path of the module, and the nodes of F.interpolate from its own code, for each call of each module."""
    forwards: dict[str, tuple[str, list[Node]]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target is F.interpolate:
            stack = node.meta.get("nn_module_stack") or {"": ("", None)}
            which_call, (path, _) = list(stack.items())[-1]
            forwards.setdefault(which_call, (joined(root_path, path), []))[1].append(node)
    yield from forwards.values()


def _turns(graph: torch.fx.Graph, root_path: str) -> _Turns:
    """The turns of calls in a graph, for a network that could not be run."""
    numbers: dict[str, dict[tuple[str, int], int]] = {}
    numbers_by_turn: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for path, nodes in _forwards(graph, root_path):
        number_of, turns = numbers.setdefault(path, {}), dict[str, list[int]]()
        for node in nodes:
            key = node.meta[_CHAIN].key
            numbered = turns.setdefault(key, [])
            numbered.append(number_of.setdefault((key, len(numbered)), len(number_of)))
        for key, numbered in turns.items():
            numbers_by_turn.setdefault((path, key), set()).add(tuple(numbered))
    return numbers_by_turn
