"""Carries guided enlargements out on a graph, as `hotswap.surgery` does swaps of convolutions."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node, Proxy
from torch.overrides import TorchFunctionMode

from hotswap import surgery
from hotswap.effects import after_activation
from hotswap.errors import HotswapError
from hotswap.guide import require_input_only
from hotswap.naming import INPUT
from hotswap.observe import Inputs, Observation
from hotswap.placing import all_paths, deepest_caller, parents
from hotswap.resizing import graph_calls, past_forward
from hotswap.resizing.checks import check_against, check_mode, located
from hotswap.resizing.places import chain_here, last_of
from hotswap.resizing.plan import Resize
from hotswap.resizing.sites import bound, find
from hotswap.tracing import Traced, UntraceableError

_CHAIN = "hotswap_chain"  # in a node's meta: of the call of F.interpolate that it is
_Turns = Mapping[tuple[str, str], Collection[tuple[int, ...]]]  # as `Sites` has them


@dataclass(frozen=True)
class Graft:
    """Guided enlargements made ready for one network: all that is left is to install them."""

    resizes: tuple[Resize, ...]
    root_path: str  # of the module that is rewritten
    traced: Traced
    names: Mapping[str, Mapping[str, str]]  # of the guided calls of F.interpolate, by module's path and chain
    notes: tuple[str, ...] = ()
    drift: float | None = None  # as the plan has it

    @property
    def note(self) -> str:
        """How, for people."""
        where = f" of {self.root_path!r}" if self.root_path else ""
        return f"rewrites {type(self.traced.root).__name__}.{self.traced.method}{where} for the enlargements"

    def attach(self, model: nn.Module, root: nn.Module) -> "Steering":
        """Make `root` an instance of a subclass of its class that has the rewritten method."""
        rewritten = surgery.rewrite(root, self.traced)
        refusing: list[tuple[str, type[nn.Module]]] = []
        for path, names in self.names.items():
            owner = model.get_submodule(path)
            if not isinstance(owner, GraphModule):  # whose one method is forward
                refusing.append((path.removeprefix(self.root_path).removeprefix("."), type(owner)))
                methods = past_forward.refusing(type(owner), names, _never, forward=path != self.root_path)
                owner.__class__ = surgery.subclass(type(owner), **methods)
        return Steering(rewritten, tuple(refusing))


@dataclass(frozen=True)
class Steering:
    """What `Graft.attach` leaves."""

    rewritten: surgery.Rewritten
    refusing: tuple[tuple[str, type[nn.Module]], ...]  # modules by path in the root, and their classes before

    def undo(self, root: nn.Module) -> None:
        """Take it away again."""
        for path, kind in self.refusing:
            root.get_submodule(path).__class__ = kind
        self.rewritten.undo(root)


def _never(_owner: nn.Module) -> bool:
    """The graph has the code of all methods, and calls none."""
    return False


def prepare(
    model: nn.Module,
    resizes: Sequence[Resize],
    observation: Observation | None,
    example_inputs: Inputs | None = None,
) -> Graft:
    """Trace, check and edit graphs, changing nothing in the network.

    Args:
        model: the network.
        resizes: what to guide.
        observation: one run of the network, if it could be run.
        example_inputs: what it was run on.

    Raises:
        HotswapError: where it cannot be done on this network, with the reason.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for resize in resizes:
        check_against(modules, resize)
    sources = {source for resize in resizes for source in resize.guide if source != INPUT}
    targets = {resize.target for resize in resizes}
    inside = all_paths(modules, *sources, *targets)
    from_input = any(INPUT in resize.guide for resize in resizes)  # known in the network's own forward only
    root_path = "" if from_input or "" in targets else deepest_caller(modules, inside, observation)
    root = modules[root_path]
    prefix = f"{root_path}." if root_path else ""
    # The modules whose forward makes a call are opened too.
    callers = all_paths(modules, *(resize.target for resize in resizes if resize.call is not None))
    below = {path.removeprefix(prefix) for path in inside if path != root_path}
    opened = {parent for path in below for parent in parents(path) if parent}
    opened |= {path.removeprefix(prefix) for path in callers if path != root_path}
    with _Marker():
        traced = surgery.open_and_trace(root_path, root, opened, None, observation)
    for graph in (traced.training, traced.evaluation):
        _mark_calls_of_graphs(root, graph)
    if observation is None:
        turns = _turns(traced.evaluation, prefix)
    else:
        sites = find(model, example_inputs, resizes)
        resizes, turns = located(model, resizes, sites), sites.turns
    training = [resize for resize in resizes if _in_training(traced, root, prefix, resize, modules, turns)]
    _edit(traced.training, root, prefix, training, modules, turns)
    _edit(traced.evaluation, root, prefix, resizes, modules, turns)
    names: dict[str, dict[str, str]] = {}
    for resize in resizes:
        own = [
            key
            for (path, key), runs in turns.items()
            if path == resize.target and any(resize.call in r for r in runs)
        ]
        names.setdefault(resize.target, {}).update(dict.fromkeys(own, repr(resize.name)))
    return Graft(tuple(resizes), root_path, traced, {path: own for path, own in names.items() if own})


# --- which node is which call --------------------------------------------------------------------------------


class _Marker(TorchFunctionMode):
    """Notes in each node of F.interpolate which chain of calls led to it.

    The code of a module can make more calls in training than in evaluation; the chain tells which is which.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.interpolate and isinstance(result, Proxy):
            result.node.meta[_CHAIN] = chain_here(traced=True)
        return result


def _mark_calls_of_graphs(root: nn.Module, graph: torch.fx.Graph) -> None:
    """The same for calls that the graphs of GraphModules make: their code was not run."""
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


def _forwards(graph: torch.fx.Graph, prefix: str) -> Iterator[tuple[str, list[Node]]]:
    """For each call of each module: its path, and the nodes of F.interpolate that its own code made."""
    found: dict[str, tuple[str, list[Node]]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target is F.interpolate:
            stack = node.meta.get("nn_module_stack") or {"": ("", None)}
            which_call, (path, _) = list(stack.items())[-1]
            path = f"{prefix}{path}" if path else prefix.removesuffix(".")
            found.setdefault(which_call, (path, []))[1].append(node)
    yield from found.values()


def _turns(graph: torch.fx.Graph, prefix: str) -> _Turns:
    """What a run would tell, where there was none."""
    numbers: dict[str, dict[tuple[str, int], int]] = {}
    found: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for path, nodes in _forwards(graph, prefix):
        own, turns = numbers.setdefault(path, {}), dict[str, list[int]]()
        for node in nodes:
            key = node.meta[_CHAIN].key
            made = turns.setdefault(key, [])
            made.append(own.setdefault((key, len(made)), len(own)))
        for key, made in turns.items():
            found.setdefault((path, key), set()).add(tuple(made))
    return found


def _nodes(graph: torch.fx.Graph, prefix: str, paths: Collection[str], resize: Resize, turns: _Turns) -> list[Node]:
    """The nodes of a call of F.interpolate: one for each call of its module, known by these paths.

    Raises:
        UntraceableError: where other calls are made along its chain than when the network was run.
    """
    chains = {k: made for (path, k), made in turns.items() if path in paths and any(resize.call in m for m in made)}
    found = []
    for path, nodes in _forwards(graph, prefix):
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
            found.append(node)
    return found


def _in_training(
    traced: Traced,
    root: nn.Module,
    prefix: str,
    resize: Resize,
    modules: Mapping[str, nn.Module],
    turns: _Turns,
) -> bool:
    """Whether a call that evaluation makes is made in training too; a network may enlarge its scores in one alone.

    Raises:
        HotswapError: where training makes another call instead, which would stay as it is.
    """
    graphs, paths = (traced.training, traced.evaluation), all_paths(modules, resize.target)
    if resize.call is None:
        module = modules[resize.target]
        called = (node for node in graphs[0].nodes if node.op == "call_module")
        return any(root.get_submodule(str(node.target)) is module for node in called)
    if _nodes(graphs[0], prefix, paths, resize, turns):
        return True
    made, known = (
        {node.meta[_CHAIN].key for path, nodes in _forwards(graph, prefix) if path in paths for node in nodes}
        for graph in graphs
    )
    if made <= known:
        return False
    raise HotswapError(
        f"target {resize.name!r} is a call of F.interpolate that {type(root).__name__} makes in evaluation, and in "
        "training it makes another, which would stay as it is; have its code make one call, whatever the mode"
    )


# --- the edit -------------------------------------------------------------------------------------------------


def _edit(
    graph: torch.fx.Graph,
    root: nn.Module,
    prefix: str,
    resizes: Sequence[Resize],
    modules: Mapping[str, nn.Module],
    turns: _Turns,
) -> None:
    """Give every call of every target its guides, in place."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    calls: dict[int, list[Node]] = {}  # id of module -> its call nodes, in order
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(id(root.get_submodule(str(node.target))), []).append(node)
    work: list[tuple[Node, tuple[Node, ...], Resize]] = []
    for resize in resizes:
        if resize.call is None:
            nodes = calls.get(id(modules[resize.target]), [])
        else:
            paths = all_paths(modules, resize.target)
            nodes = _nodes(graph, prefix, paths, resize, turns)
            for node in nodes:
                check_mode(resize, bound(node.args, node.kwargs)["mode"])
        if not nodes:
            raise HotswapError(f"target {resize.name!r} is never called by {type(root).__name__}; name one that is")
        for node in nodes:
            taps = tuple(_tap(graph, root, calls, modules, source, node, resize, position) for source in resize.guide)
            work.append((node, taps, resize))
    work.sort(key=lambda item: position[item[0]])
    read: dict[Node, Node] = {}  # activation -> what to read, a copy where it is overwritten later
    for _, taps, resize in work:
        for tap, source in zip(taps, resize.guide, strict=True):
            if tap not in read:
                read[tap] = surgery._unchanging(graph, tap, root, source)
    for node, taps, resize in work:
        guides = tuple(read[tap] for tap in taps)
        if resize.call is None:
            require_input_only(resize.name, node.args, node.kwargs)
            node.args, node.kwargs = (node.args[0] if node.args else node.kwargs["input"], guides), {}
            continue
        input, *further = bound(node.args, node.kwargs).values()
        with graph.inserting_before(node):
            guided = graph.call_module(resize.layer_path.removeprefix(prefix), (input, guides, *further))
        node.replace_all_uses_with(guided)
        graph.erase_node(node)
    graph.lint()


def _tap(
    graph: torch.fx.Graph,
    root: nn.Module,
    calls: Mapping[int, list[Node]],
    modules: Mapping[str, nn.Module],
    source: str,
    target: Node,
    resize: Resize,
    position: dict[Node, int],
) -> Node:
    """The activation that is a guide for one call of a target."""
    if source == INPUT:
        return surgery._image(graph, root)
    call = surgery._guide_call(calls.get(id(modules[source]), []), source, target, resize, position)
    tap = after_activation(call, root) if resize.after_activation else call
    return tap if position[tap] < position[target] else call  # as in hotswap.surgery
