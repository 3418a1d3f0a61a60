"""Calls of `F.interpolate` in the generated code of GraphModules: nodes of their graphs."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch.fx import Graph, GraphModule, Node

from hotswap.errors import HotswapError
from hotswap.network.copying import graphs
from hotswap.network.dry_run import mode
from hotswap.network.graph_modules import EVALUATION, GRAPH, TRAINING, by_mode, is_stale
from hotswap.surgery import regraphing
from hotswap.targets.call_sites import Chain, chain_of, last_of
from hotswap.targets.sites import bound


def chains(module: GraphModule) -> list[Chain]:
    """The chains of the calls of a graph, in order, in the code of evaluation mode."""
    with mode(module, training=False):
        lines, code = module.code.splitlines(), type(module).forward.__code__
        calls = _calls(module.graph)
    all_chains = []
    for node in calls:
        starts = (f"{node.name} =", f"{node.name} :")
        line = next(n for n, text in enumerate(lines, start=1) if text.strip().startswith(starts))
        all_chains.append(chain_of(code, line))
    return all_chains


def which(module: GraphModule, key: str) -> int:
    """The number of the call in a graph that has a chain, by its key.

    Raises:
        HotswapError: where the graph does not make it itself, or does not in both modes.
    """
    counts = {len(_calls(graph)) for graph in _graphs(module)}
    keys = [] if is_stale(module) or len(counts) > 1 else [chain.key for chain in chains(module)]
    if key not in keys:
        raise HotswapError(
            f"the call of F.interpolate at {last_of(key)} is none that the graph of {type(module).__name__} makes "
            "itself, in training as in evaluation; choose another, or have the call made by a module"
        )
    return keys.index(key)


def guide(module: GraphModule, layers: Mapping[int, str]) -> None:
    """Replace calls, by number, with layers, by attribute, in place. Undone by `regraphing.undo`."""
    new = [Graph() for _ in _graphs(module)]
    for graph, plain in zip(new, _graphs(module), strict=True):
        graph.output(graph.graph_copy(plain, {}))
        graph.set_codegen(plain._codegen)
        for index, node in enumerate(_calls(graph)):
            if index in layers:
                hand_over(node, layers[index], None)
    regraphing.rewrite(module, new[0], new[-1])


def hand_over(call: Node, layer: str, guides: Any) -> Node:
    """Have a guided layer, by its path, take the place of a call of `F.interpolate` in a graph."""
    input, *further = bound(call.args, call.kwargs).values()
    with call.graph.inserting_before(call):
        guided = call.graph.call_module(layer, (input, guides, *further))
    call.replace_all_uses_with(guided)
    call.graph.erase_node(call)
    return guided


def _graphs(module: GraphModule) -> list[Graph]:
    """The graphs of training and of evaluation, or the only one."""
    held = graphs(module)
    return [held[TRAINING], held[EVALUATION]] if by_mode(module) else [held[GRAPH]]


def _calls(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_function" and node.target is F.interpolate]
