"""Carries a plan out on a graph, and puts what was prepared, here or by `hooks`, into a network.

`prepare` does everything that can fail and changes nothing; `install` then only reassigns classes, and
`remove` reassigns them back. The module whose method is rewritten keeps its class: it becomes an instance of a
generated subclass of it, whose one method is the graph's code.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
import torch.fx
from torch import nn
from torch.fx import GraphModule, Node

from hotswap import effects, kernels, layers, regraphing
from hotswap.choices import FX, HOOKS
from hotswap.effects import after_activation
from hotswap.errors import HotswapError
from hotswap.graph_modules import by_mode, is_stale
from hotswap.guide import guide_copy, image_size, require_input_only, shared_guides
from hotswap.leaves import leaf_modules
from hotswap.naming import INPUT
from hotswap.observe import Observation
from hotswap.placing import called_root, check_swaps, inside_paths, parents
from hotswap.resizing import layers as enlarging
from hotswap.resizing import record as resized
from hotswap.resizing.plan import Resize
from hotswap.sliding import sliding_of
from hotswap.targets.plan import Plan, Swap
from hotswap.tracing import Traced, UnpackedError, UntraceableError, trace

_RECORD = "_hotswap_record"  # a plain attribute of the module around guide and targets, not in its state_dict


class Record(Protocol):
    """What a conversion leaves in the module around guide and targets, to be known and undone by."""

    @property
    def plan(self) -> Plan:
        """What was carried out."""

    @property
    def root_path(self) -> str:
        """Of that module, in the network the plan was made for."""

    def undo(self, root: nn.Module) -> None:
        """Make the module plain again, all but its targets."""

    def planned(self, plan: Plan) -> "Record":
        """The same for another plan."""


class Prepared(Protocol):
    """A plan made ready for one network: all that is left is to install it."""

    @property
    def plan(self) -> Plan:
        """What it carries out."""

    @property
    def root_path(self) -> str:
        """The module around guide and targets."""

    @property
    def note(self) -> str:
        """How, for people."""

    def noted(self, *notes: str) -> Self:
        """The same with more notes in its plan."""

    def attach(self, model: nn.Module, root: nn.Module) -> Record:
        """Make the guides reach the targets, in place, in the network it was prepared for or a deep copy of it."""


@dataclass(frozen=True)
class _Record:
    plan: Plan
    root_path: str
    rewritten: "Rewritten"

    def undo(self, root: nn.Module) -> None:
        self.rewritten.undo(root)

    def planned(self, plan: Plan) -> "_Record":
        return replace(self, plan=plan)


@dataclass(frozen=True)
class Graft:
    """A plan as graphs that take the place of a method."""

    plan: Plan
    root_path: str
    traced: Traced

    @property
    def note(self) -> str:
        """How the plan is carried out, for people."""
        where = f" of {self.root_path!r}" if self.root_path else ""
        return f"rewrites {type(self.traced.root).__name__}.{self.traced.method}{where}"

    def noted(self, *notes: str) -> Self:
        """The same with more notes in its plan."""
        return replace(self, plan=self.plan.noted(*notes))

    def attach(self, model: nn.Module, root: nn.Module) -> _Record:
        """Make `root` an instance of a subclass of its class that has the rewritten method."""
        return _Record(self.plan, self.root_path, rewrite(root, self.traced))


def prepare(model: nn.Module, plan: Plan, observation: Observation | None) -> Graft:
    """Trace, check and edit graphs for a plan, changing nothing in the network.

    Args:
        model: the network.
        plan: what to swap.
        observation: one run of the network, if it could be run; finds the module to rewrite when some modules
            are only containers that are never called.

    Raises:
        HotswapError: where the plan cannot be carried out on this network, with the reason.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    check_swaps(modules, plan)
    inside = inside_paths(modules, plan)
    root_path = called_root(modules, plan, inside, observation)
    root = modules[root_path]
    prefix = f"{root_path}." if root_path else ""
    relative = {path.removeprefix(prefix) for path in inside}
    opened = {parent for path in relative for parent in parents(path) if parent}
    from_input = any(INPUT in swap.guide for swap in plan.swaps)
    traced = open_and_trace(root_path, root, opened, relative, observation, from_input=from_input)
    for graph in (traced.training, traced.evaluation):
        _edit(graph, root, plan, modules)
    return Graft(plan, root_path, traced)


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


@dataclass(frozen=True)
class Rewritten:
    """What `rewrite` leaves."""

    plain_class: type[nn.Module]
    constants: tuple[str, ...]  # attributes added for tensors that the traced code makes

    def undo(self, root: nn.Module) -> None:
        """Make the module plain again."""
        for name in self.constants:
            del root.__dict__[name]
        if isinstance(root, GraphModule):
            regraphing.undo(root)
        else:
            root.__class__ = self.plain_class


def rewrite(root: nn.Module, traced: Traced) -> Rewritten:
    """Make `root` an instance of a subclass of its class that has the traced method, in place.

    A GraphModule gets the graphs instead.
    """
    plain = type(root)
    root.__dict__.update(traced.constants)
    if isinstance(root, GraphModule):
        regraphing.rewrite(root, traced.training, traced.evaluation)
    else:
        root.__class__ = subclass(plain, **{traced.method: _as_method(root, traced)})
    return Rewritten(plain, tuple(traced.constants))


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


def install(model: nn.Module, prepared: Prepared) -> None:
    """Carry a prepared plan out, in place, on the network it was prepared for (or a deep copy of it).

    Nothing steers the network's layers yet, or any more (see `detach`). Those that are swapped already stay as they
    are, and are steered by the plan from now on, which must name them.
    """
    device = next((x.device for x in model.parameters()), torch.device("cpu"))
    for swap in prepared.plan.swaps:
        target = model.get_submodule(swap.target)
        if not isinstance(target, layers.SwappedLayer):
            layers.swap_in(target, swap, device)
    root = model.get_submodule(prepared.root_path)
    root.__dict__[_RECORD] = prepared.attach(model, root)
    regraphing.keep_whole(model)


def remove(model: nn.Module) -> None:
    """Make every swapped part of a network plain again, in place, with its current weights."""
    detach(model)
    for module in model.modules():
        if isinstance(module, layers.SwappedLayer):
            layers.swap_out(module)
    enlarging.swap_out(model)


def detach(model: nn.Module) -> None:
    """Undo what steers swapped layers, in place; the layers themselves stay swapped.

    Raises:
        HotswapError: where it cannot be undone, as a graph was edited since; nothing has changed then.
    """
    regraphing.require_unedited(model)
    for module in model.modules():
        record: Record | None = module.__dict__.pop(_RECORD, None)
        if record is not None:
            record.undo(module)
    resized.detach(model)  # last, as it came first
    regraphing.release(model)


def require_own_input(model: nn.Module) -> None:
    """Refuse a network in which a guide is the first argument of an inner module: a plan cannot name that.

    Raises:
        HotswapError: where one is.
    """
    for path, module in model.named_modules():
        record: Record | None = module.__dict__.get(_RECORD)
        swaps: Sequence[Swap | Resize] = () if record is None else record.plan.swaps
        resizes = resized.of(module)
        moved = (record is not None and record.root_path != path) or (resizes and resizes.root_path != path)
        guided = [*swaps, *(resizes.resizes if resizes else ())]
        if moved and any(INPUT in swap.guide for swap in guided):
            raise HotswapError(
                f"a guide is the input of module {path!r}, which was converted by itself, and a plan can only name "
                "the input of the whole network; do this with that module alone, or hotswap.revert it first"
            )


def current_plan(model: nn.Module) -> Plan | None:
    """The swaps a network carries now, with paths from this network and scales as they are; None if none."""
    return resized.joined(_current_swaps(model), model)


def _current_swaps(model: nn.Module) -> Plan | None:
    swaps: list[Swap] = []
    notes: list[str] = []
    drift: float | None = None
    methods: set[str] = set()
    for path, module in model.named_modules():
        record: Record | None = module.__dict__.get(_RECORD)
        if record is None:
            continue
        # The module may have moved since: into a wrapper, or out of the network.
        before, now = (f"{p}." if p else "" for p in (record.root_path, path))
        for swap in record.plan.swaps:
            target = now + swap.target.removeprefix(before)
            guide = tuple(s if s == INPUT else now + s.removeprefix(before) for s in swap.guide)
            taps = tuple(tap and (now + tap[0].removeprefix(before), tap[1]) for tap in swap.taps)
            conv = model.get_submodule(target)
            current = conv.swap if isinstance(conv, layers.SwappedLayer) else swap
            swaps.append(replace(current, target=target, guide=guide, taps=taps))
        drift = record.plan.drift
        notes += record.plan.notes
        methods.add(record.plan.method)
    if not swaps:
        return None
    measured = all(swap.deviation is not None for swap in swaps)  # nothing was set by hand since
    return Plan(tuple(swaps), drift if measured else None, tuple(notes), HOOKS if HOOKS in methods else FX)


def record_drift(model: nn.Module, drift: float | None) -> None:
    """Keep how far a swapped network's outputs are from its plain self's, for `current_plan` to tell."""
    for module in model.modules():
        record: Record | None = module.__dict__.get(_RECORD)
        if record is not None:
            module.__dict__[_RECORD] = record.planned(replace(record.plan, drift=drift))
    resized.record_drift(model, drift)


# --- checks -------------------------------------------------------------------------------------------


def _check_calls(path: str, module: nn.Module) -> None:
    if isinstance(module, GraphModule) and is_stale(module):
        raise UntraceableError(
            f"module {path or 'the network'!r} has a graph that was edited since its code was generated, so it runs "
            "other code; call its recompile() first"
        )
    if resized.CALLS in module.__dict__:
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


def _never_called(root: nn.Module, swap: Swap, plan: Plan) -> HotswapError:
    named = {path for other in plan.swaps for path in (other.target, *other.guide)}
    inside = next((path for path in sorted(named) if path.startswith(f"{swap.target}.")), None)
    if inside is None:
        return HotswapError(f"target {swap.target!r} is never called by {type(root).__name__}; name one that is")
    return HotswapError(
        f"target {swap.target!r} holds {inside!r}, so that the rewritten forward has its code and does not call it; "
        'name a guide that is not inside a target, or use method="hooks"'
    )


def _edit(graph: torch.fx.Graph, root: nn.Module, plan: Plan, modules: Mapping[str, nn.Module]) -> None:
    """Give every call of every target its distances, in place. `modules` are the network's, by full path."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    calls: dict[int, list[Node]] = {}  # id of module -> its call nodes, in order
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(id(root.get_submodule(str(node.target))), []).append(node)
    work: list[tuple[Node, tuple[Node, ...], Swap]] = []  # target call, guide activations, swap
    for swap in plan.swaps:
        targets = calls.get(id(modules[swap.target]), [])
        if not targets:
            raise _never_called(root, swap, plan)
        for target in targets:
            taps = []
            for source in swap.guide:
                if source == INPUT:
                    taps.append(_image(graph, root))
                    continue
                call = _guide_call(calls.get(id(modules[source]), []), source, target, swap, position)
                # A swap made by hooks says where its guide was caught; without a tap, as its module gave it.
                own = bool(swap.taps) and swap.taps[swap.guide.index(source)] is None
                tap = after_activation(call, root) if swap.after_activation and not own else call
                # The activation may come after the target: then the guide is as its module gives it.
                taps.append(tap if position[tap] < position[target] else call)
            work.append((target, tuple(taps), swap))
    work.sort(key=lambda item: position[item[0]])
    guide_of: dict[Node, Node] = {}  # activation -> what to read, a copy where it is overwritten later
    for _, activations, swap in work:
        for tap, source in zip(activations, swap.guide, strict=True):
            if tap not in guide_of:
                guide_of[tap] = _unchanging(graph, tap, root, source)
    keys = [_alike(tuple(guide_of[tap] for tap in taps), modules[swap.target], swap) for _, taps, swap in work]
    latest: dict[tuple[Any, ...], Node] = {}  # of these, the last made
    for (target, _, swap), key in zip(work, keys, strict=True):
        require_input_only(swap.target, target.args, target.kwargs)
        like, guides = target.args[0] if target.args else target.kwargs["input"], key[0]
        if keys.count(key) > 1:
            with graph.inserting_before(target):
                size = graph.call_function(image_size, (swap.target, like))
                latest[key] = graph.call_function(
                    shared_guides, (swap.guide, guides, size, *key[1:], latest.get(key))
                )
            guides = latest[key]
        target.args, target.kwargs = (like, guides), {}
    graph.lint()


def _alike(guides: tuple[Node, ...], target: nn.Module, swap: Swap) -> tuple[Any, ...]:
    """Equal for targets whose distances are, where their inputs have one size."""
    return guides, sliding_of(target), swap.resize, kernels.parse(swap.kernel).asymmetric


def _image(graph: torch.fx.Graph, root: nn.Module) -> Node:
    """The first argument of the rewritten method, as it receives it."""
    first: Node | None = next((node for node in graph.nodes if node.op == "placeholder"), None)
    if first is None:
        raise HotswapError(f"guide {INPUT!r} is the network's first argument, and {type(root).__name__} takes none")
    return first


def _guide_call(
    guides: Sequence[Node], source: str, target: Node, swap: Swap | Resize, position: dict[Node, int]
) -> Node:
    """The call of the guide that belongs to one call of a target: the last one it is computed from, if any is."""
    before = [node for node in guides if position[node] < position[target]]
    if not before:
        raise (
            _too_late(source, swap) if guides else HotswapError(f"guide {source!r} is never called; name one that is")
        )
    if len(guides) == 1:
        return guides[0]
    sources = _sources(target)
    feeding = [node for node in before if node in sources]
    if feeding:
        return feeding[-1]
    raise HotswapError(
        f"guide {source!r} is called {len(guides)} times and target {swap.target!r} is computed from none of "
        "these calls, so it is not clear which should steer it; choose a guide that the target is computed from"
    )


def _too_late(source: str, swap: Swap | Resize) -> HotswapError:
    return HotswapError(
        f"guide {source!r} is computed after target {swap.target!r} or from it; name a module that runs earlier"
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
    if effects.is_in_place(tap, root):
        same_memory += tap.all_input_nodes
    users = {user for node in same_memory for user in node.users if user is not tap}
    if all(effects.only_reads(user, same_memory, root) for user in users):
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
