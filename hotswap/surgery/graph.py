"""Carries a plan out on a graph.

`prepare` does everything that can fail, and changes nothing. The module whose method is rewritten keeps its class: it
becomes an instance of a generated subclass of it, whose one method is the graph's code.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.fx import GraphModule, Node

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Inputs, Observation
from hotswap.network.graph_modules import by_mode, is_stale
from hotswap.network.names import INPUT
from hotswap.surgery import call_nodes, install, past_forward, regraphing
from hotswap.surgery.activations import after_activation, is_in_place, only_reads
from hotswap.surgery.registry import leaf_modules
from hotswap.surgery.scope import all_paths, called_root, check_fits, inside_paths, parents
from hotswap.surgery.tracing import Traced, UnpackedError, UntraceableError, trace
from hotswap.targets import kernels
from hotswap.targets.forward_ops import guide_copy, image_size, require_input_only, shared_guides
from hotswap.targets.plan import Plan, Resize, Swap
from hotswap.targets.sites import bound
from hotswap.targets.window import sliding_of


@dataclass(frozen=True)
class Graft(install.Graft):
    """A plan as graphs that take the place of a method."""

    traced: Traced
    names: call_nodes.Names  # of guided calls of F.interpolate

    @property
    def note(self) -> str:
        """See the base class."""
        where = f" of {self.root_path!r}" if self.root_path else ""
        what = "" if self.plan.swaps else " for the enlargements"
        return f"rewrites {type(self.traced.root).__name__}.{self.traced.method}{where}{what}"

    def attach(self, model: nn.Module, root: nn.Module) -> "Rewritten":
        """Make `root` an instance of a subclass of its class that has the rewritten method."""
        plain = type(root)
        root.__dict__.update(self.traced.constants)
        if isinstance(root, GraphModule):
            regraphing.rewrite(root, self.traced.training, self.traced.evaluation)
        else:
            root.__class__ = subclass(plain, **{self.traced.method: _as_method(root, self.traced)})
        refusing: list[tuple[str, type[nn.Module]]] = []
        for path, names in self.names.items():
            owner = model.get_submodule(path)
            if not isinstance(owner, GraphModule):  # whose one method is forward
                refusing.append((path.removeprefix(self.root_path).removeprefix("."), type(owner)))
                methods = past_forward.refusing(type(owner), names, _never, forward=path != self.root_path)
                owner.__class__ = subclass(type(owner), **methods)
        return Rewritten(plain, tuple(self.traced.constants), tuple(refusing))


def _never(_owner: nn.Module) -> bool:
    """The graph has the code of all methods, and calls none."""
    return False


@dataclass(frozen=True)
class Rewritten:
    """What `Graft.attach` leaves."""

    plain_class: type[nn.Module]
    constants: tuple[str, ...]  # attributes added for tensors that the traced code makes
    refusing: tuple[tuple[str, type[nn.Module]], ...]  # modules by path in the root, and their classes before

    def lost(self, root: nn.Module) -> list[str]:
        """Nothing: the graph calls whatever module stands in a guide's place."""
        return []

    def undo(self, root: nn.Module) -> None:
        """Make the module plain again."""
        for path, kind in self.refusing:
            root.get_submodule(path).__class__ = kind
        for name in self.constants:
            del root.__dict__[name]
        if isinstance(root, GraphModule):
            regraphing.undo(root)
        else:
            root.__class__ = self.plain_class


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
    prefix = f"{root_path}." if root_path else ""
    relative = {path.removeprefix(prefix) for path in inside}
    opened = {parent for path in relative for parent in parents(path) if parent}
    if plan.swaps:
        from_input = any(INPUT in swap.guide for swap in plan.swaps)
        traced = open_and_trace(root_path, root, opened, relative, observation, from_input=from_input)
        calls = None
    else:
        # The modules whose forward makes a call are opened too.
        callers = all_paths(modules, *(resize.target for resize in plan.resizes if resize.call is not None))
        opened |= {path.removeprefix(prefix) for path in callers if path != root_path}
        with call_nodes.Marker():
            traced = open_and_trace(root_path, root, opened, None, observation)
        calls, resizes = call_nodes.find_calls(model, plan.resizes, traced, prefix, observation, example_inputs)
        plan = replace(plan, resizes=resizes)
    made = [r for r in plan.resizes if calls is not None and calls.in_training(traced, modules, r)]
    _edit(traced.training, root, prefix, replace(plan, resizes=tuple(made)), modules, calls)
    _edit(traced.evaluation, root, prefix, plan, modules, calls)
    return Graft(plan, root_path, traced, {} if calls is None else calls.names(plan.resizes))


def open_and_trace(
    root_path: str,
    root: nn.Module,
    opened: set[str],
    inside: set[str] | None,
    observation: Observation | None,
    *,
    from_input: bool = False,
) -> Traced:
    """`trace`, with all modules opened that this takes, after a look at each whether it may be.

    Beside `opened` these are the modules whose outputs the traced code unpacks: `first, *others = self.encoder(x)`.

    Raises:
        HotswapError: where one may not be opened, or the code cannot be traced, with the reason.
    """
    _check_root(root_path, root)
    call = None if observation is None else observation.first(root_path)
    prefix, looked_at = f"{root_path}." if root_path else "", set[str]()
    while True:
        for path in sorted(opened - looked_at):
            _check_openable(prefix + path, root.get_submodule(path))
        looked_at = opened
        try:
            traced = trace(root, opened, inside, from_input=from_input, call=call)
        except UnpackedError as error:
            opened = opened | {error.module}
        else:
            _check_one_graph(root_path, traced)
            return traced


def subclass(plain: type[nn.Module], **methods: Callable[..., Any]) -> type[nn.Module]:
    """A class by the same name with some methods of its own, for one network: a new instance is one of `plain`."""

    @functools.wraps(plain.__init__)
    def initialise(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.__class__ = plain
        plain.__init__(self, *args, **kwargs)

    namespace = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    metaclass: Any = type(plain)
    made: type[nn.Module] = metaclass(plain.__name__, (plain,), methods | namespace | {"__init__": initialise})
    return made


# --- checks -------------------------------------------------------------------------------------------


def _check_calls(path: str, module: nn.Module) -> None:
    if isinstance(module, GraphModule) and is_stale(module):
        raise UntraceableError(
            f"module {path or 'the network'!r} has a graph that was edited since its code was generated, so it runs "
            "other code; call its recompile() first"
        )
    if install.CALLS in module.__dict__:
        raise UntraceableError(f"module {path or 'the network'!r} has enlargements whose guides are caught by hooks")


def _check_openable(path: str, module: nn.Module) -> None:
    _check_calls(path, module)
    if isinstance(module, torch.jit.ScriptModule):
        raise UntraceableError(
            f"module {path!r} is a ScriptModule, whose code cannot be edited; convert the eager network"
        )
    if isinstance(module, leaf_modules()):
        raise UntraceableError(
            f"module {path!r} is a {type(module).__name__}, which is registered as not to be traced"
        )
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for name in hooks):
        raise UntraceableError(
            f"module {path!r} has hooks, which the rewritten forward would not call; "
            "remove them, or choose a guide and targets in one part of the network"
        )


def _check_root(path: str, module: nn.Module) -> None:
    _check_calls(path, module)
    if isinstance(module, torch.jit.ScriptModule):
        raise UntraceableError(
            f"module {path or 'the network'!r} is a ScriptModule, whose code cannot be edited; "
            "convert the eager network"
        )
    if "forward" in module.__dict__:
        raise UntraceableError(
            f"module {path or 'the network'!r} has had its forward replaced on the instance, which a rewritten class "
            "would not change; undo that first"
        )


def _check_one_graph(path: str, traced: Traced) -> None:
    """A GraphModule has no code of its own to choose between the modes of the modules that it opened."""
    if isinstance(traced.root, GraphModule) and traced.opened:
        sources = [graph.python_code("self").src for graph in (traced.training, traced.evaluation)]
        if by_mode(traced.root) or sources[0] != sources[1]:
            raise UntraceableError(
                f"module {path or 'the network'!r} is a {type(traced.root).__name__}, and {traced.opened[0]!r} in it "
                "does different things in training and in evaluation, which one graph cannot"
            )


# --- the edit -------------------------------------------------------------------------------------------


def _never_called(root: nn.Module, entry: Swap | Resize, plan: Plan) -> HotswapError:
    named = {path for swap in plan.swaps for path in (swap.target, *swap.guide)}
    inside = next((path for path in sorted(named) if path.startswith(f"{entry.target}.")), None)
    if inside is None:
        return HotswapError(f"target {entry.name!r} is never called by {type(root).__name__}; name one that is")
    return HotswapError(
        f"target {entry.name!r} holds {inside!r}, so that the rewritten forward has its code and does not call it; "
        'name a guide that is not inside a target, or use method="hooks"'
    )


def _edit(
    graph: torch.fx.Graph,
    root: nn.Module,
    prefix: str,
    plan: Plan,
    modules: Mapping[str, nn.Module],
    interpolations: call_nodes.Calls | None,
) -> None:
    """Give every call of every target its guides, in place. `modules` are the network's, by full path."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    calls: dict[int, list[Node]] = {}  # id of module -> its call nodes, in order
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(id(root.get_submodule(str(node.target))), []).append(node)
    work: list[tuple[Node, tuple[Node, ...], Swap | Resize]] = []  # target call, guide activations, what is asked
    for entry in plan.entries:
        if interpolations is not None and isinstance(entry, Resize) and entry.call is not None:
            targets = interpolations.nodes(graph, all_paths(modules, entry.target), entry)
        else:
            targets = calls.get(id(modules[entry.target]), [])
        if not targets:
            raise _never_called(root, entry, plan)
        for target in targets:
            taps = []
            for source in entry.guide:
                if source == INPUT:
                    taps.append(_image(graph, root))
                    continue
                call = _guide_call(calls.get(id(modules[source]), []), source, target, entry, position)
                # A swap made by hooks says where its guide was caught; without a tap, as its module gave it.
                own = bool(entry.taps) and entry.taps[entry.guide.index(source)] is None
                tap = after_activation(call, root) if entry.after_activation and not own else call
                # The activation may come after the target: then the guide is as its module gives it.
                taps.append(tap if position[tap] < position[target] else call)
            work.append((target, tuple(taps), entry))
    work.sort(key=lambda item: position[item[0]])
    guide_of: dict[Node, Node] = {}  # activation -> what to read, a copy where it is overwritten later
    for _, activations, entry in work:
        for tap, source in zip(activations, entry.guide, strict=True):
            if tap not in guide_of:
                guide_of[tap] = _unchanging(graph, tap, root, source)
    keys = [_alike(tuple(guide_of[tap] for tap in taps), modules[entry.target], entry) for _, taps, entry in work]
    latest: dict[tuple[Any, ...], Node] = {}  # of these, the last made
    for (target, _, entry), key in zip(work, keys, strict=True):
        guides: Any = key[0]
        if isinstance(entry, Resize) and entry.call is not None:
            input, *further = bound(target.args, target.kwargs).values()
            with graph.inserting_before(target):
                guided = graph.call_module(entry.layer_path.removeprefix(prefix), (input, guides, *further))
            target.replace_all_uses_with(guided)
            graph.erase_node(target)
            continue
        require_input_only(entry.name, target.args, target.kwargs)
        like = target.args[0] if target.args else target.kwargs["input"]
        if isinstance(entry, Swap) and keys.count(key) > 1:
            with graph.inserting_before(target):
                size = graph.call_function(image_size, (entry.target, like))
                shared = (entry.guide, guides, size, *key[1:], latest.get(key))
                guides = latest[key] = graph.call_function(shared_guides, shared)
        target.args, target.kwargs = (like, guides), {}
    graph.lint()


def _alike(guides: tuple[Node, ...], target: nn.Module, entry: Swap | Resize) -> tuple[Any, ...]:
    """Equal for convolutions whose distances are, where their inputs have one size."""
    if isinstance(entry, Resize):
        return (guides,)
    return guides, sliding_of(target), entry.resize, kernels.parse(entry.kernel).asymmetric


def _image(graph: torch.fx.Graph, root: nn.Module) -> Node:
    """The first argument of the rewritten method, as it receives it."""
    first: Node | None = next((node for node in graph.nodes if node.op == "placeholder"), None)
    if first is None:
        raise HotswapError(f"guide {INPUT!r} is the network's first argument, and {type(root).__name__} takes none")
    return first


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
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        new = [source for source in waiting.pop().all_input_nodes if source not in found]
        found.update(new)
        waiting += new
    return found


def _unchanging(graph: torch.fx.Graph, tap: Node, root: nn.Module, guide_name: str) -> Node:
    """The activation itself where nothing overwrites it in place, else a copy taken at once."""
    same_memory = [tap]
    if is_in_place(tap, root):
        same_memory += tap.all_input_nodes
    users = {user for node in same_memory for user in node.users if user is not tap}
    if all(only_reads(user, same_memory, root) for user in users):
        return tap
    with graph.inserting_after(tap):
        return graph.call_function(guide_copy, (guide_name, tap))


# --- the method -----------------------------------------------------------------------------------------


def _as_method(root: nn.Module, traced: Traced) -> Callable[..., Any]:
    """A function of (self, ...) that runs the graph of the module's mode."""
    training, evaluation = (_compile(root, graph) for graph in (traced.training, traced.evaluation))
    if traced.training.python_code("self").src == traced.evaluation.python_code("self").src:
        return evaluation
    opened = traced.opened

    @functools.wraps(evaluation)  # with its signature, so that the method can be traced in its turn
    def by_mode(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        mixed = [path for path in opened if self.get_submodule(path).training is not self.training]
        if mixed:
            raise HotswapError(
                f"{type(self).__name__} is in {'training' if self.training else 'evaluation'} mode and {mixed[0]} is "
                "not; it does different things in the two modes, and was rewritten for one mode at a time"
            )
        return (training if self.training else evaluation)(self, *args, **kwargs)

    return by_mode


def _compile(root: nn.Module, graph: torch.fx.Graph) -> Callable[..., Any]:
    function: Callable[..., Any] = type(torch.fx.GraphModule(root, graph)).forward
    return function
