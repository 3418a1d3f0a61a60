"""Carries a plan out on a graph.

`prepare` does everything that can fail and changes nothing; `install` then only reassigns classes, and
`remove` reassigns them back. The module whose method is rewritten keeps its class: it becomes an instance of a
generated subclass of it, whose one method is the graph's code.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.fx
from torch import nn
from torch.fx import Node

from hotswap import effects, kernels, layers
from hotswap.effects import after_activation
from hotswap.errors import HotswapError
from hotswap.guide import guide_copy, image_size, window_distance
from hotswap.naming import INPUT, closest
from hotswap.observe import Observation
from hotswap.plan import Plan, Swap
from hotswap.tracing import Traced, trace
from pac_ops.layers import window_of

_RECORD = "_hotswap_record"  # a plain attribute of the rewritten module, not in its state_dict


@dataclass(frozen=True)
class _Record:
    plan: Plan
    root_path: str  # of the rewritten module, in the network the plan was made for
    plain_class: type[nn.Module]
    constants: tuple[str, ...]  # attributes added for tensors that the traced code makes


@dataclass(frozen=True)
class Graft:
    """A plan made ready for one network: all that is left is to install it."""

    plan: Plan
    root_path: str  # of the module that is rewritten
    traced: Traced


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
    if current_plan(model) is not None:
        raise HotswapError("the network is converted already; hotswap.revert it first, and name all targets together")
    modules = dict(model.named_modules(remove_duplicate=False))
    for swap in plan.swaps:
        _check_against(modules, swap)
    inside = {path for swap in plan.swaps for path in _all_paths(modules, swap.target, *_module_guides(swap))}
    from_input = any(INPUT in swap.guide for swap in plan.swaps)  # which is known in the network's own forward only
    root_path = "" if from_input else _lowest_common_caller(modules, inside, observation)
    root = modules[root_path]
    prefix = f"{root_path}." if root_path else ""
    _check_root(root_path, root)
    relative = {path.removeprefix(prefix) for path in inside}
    opened = {parent for path in relative for parent in _parents(path) if parent}
    for path in sorted(opened):
        _check_openable(prefix + path, root.get_submodule(path))
    traced = trace(root, opened, relative, from_input=from_input)
    for graph in (traced.training, traced.evaluation):
        _edit(graph, root, plan, modules)
    return Graft(plan, root_path, traced)


def install(model: nn.Module, graft: Graft) -> None:
    """Carry a prepared graft out, in place, on the network it was prepared for (or a deep copy of it)."""
    root = model.get_submodule(graft.root_path)
    traced = graft.traced
    for swap in graft.plan.swaps:
        conv = model.get_submodule(swap.target)
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 (checked by prepare)
        layers.swap_in(conv, swap)
    root.__dict__.update(traced.constants)
    root.__dict__[_RECORD] = _Record(graft.plan, graft.root_path, type(root), tuple(traced.constants))
    plain: Any = type(root)
    namespace = {
        traced.method: _as_method(root, traced),
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
    }
    root.__class__ = type(plain)(plain.__name__, (plain,), namespace)  # type(plain): its metaclass


def remove(model: nn.Module) -> None:
    """Make every swapped part of a network plain again, in place, with its current weights."""
    for module in model.modules():
        record = module.__dict__.pop(_RECORD, None)
        if record is not None:
            for name in record.constants:
                del module.__dict__[name]
            module.__class__ = record.plain_class
        if isinstance(module, layers.SwappedConv2d):
            layers.swap_out(module)


def current_plan(model: nn.Module) -> Plan | None:
    """The swaps a network carries now, with paths from this network and scales as they are; None if none."""
    swaps: list[Swap] = []
    notes: list[str] = []
    drift: float | None = None
    for path, module in model.named_modules():
        record = module.__dict__.get(_RECORD)
        if record is None:
            continue
        # The rewritten module may have moved since: into a wrapper, or out of the network.
        before, now = (f"{p}." if p else "" for p in (record.root_path, path))
        for swap in record.plan.swaps:
            target = now + swap.target.removeprefix(before)
            guide = tuple(s if s == INPUT else now + s.removeprefix(before) for s in swap.guide)
            conv = model.get_submodule(target)
            current = conv.swap if isinstance(conv, layers.SwappedConv2d) else swap
            swaps.append(replace(current, target=target, guide=guide))
        drift = record.plan.drift
        notes += record.plan.notes
    if not swaps:
        return None
    measured = all(swap.deviation is not None for swap in swaps)  # nothing was set by hand since
    return Plan(tuple(swaps), drift if measured else None, tuple(notes))


def record_drift(model: nn.Module, drift: float) -> None:
    """Keep how far a swapped network's outputs are from its plain self's, for `current_plan` to tell."""
    for module in model.modules():
        record = module.__dict__.get(_RECORD)
        if record is not None:
            module.__dict__[_RECORD] = replace(record, plan=replace(record.plan, drift=drift))


# --- checks -------------------------------------------------------------------------------------------


def _check_against(modules: dict[str, nn.Module], swap: Swap) -> None:
    for role, path in (("target", swap.target), *(("guide", path) for path in _module_guides(swap))):
        if path not in modules:
            raise HotswapError(f"{role} {path!r} is no module of this network{closest(path, modules)}")
    conv = modules[swap.target]
    if reason := layers.why_not_swappable(conv):
        raise HotswapError(f"target {swap.target!r} cannot be swapped: {reason}")
    assert isinstance(conv, nn.Conv2d)  # noqa: S101 (just checked)
    planned = (swap.kernel_size, swap.in_channels, swap.out_channels)
    actual = (tuple(conv.kernel_size), conv.in_channels, conv.out_channels)
    if planned != actual:
        raise HotswapError(
            f"target {swap.target!r} must be, by the plan, a convolution of (window, input, output channels) "
            f"{planned}, got {actual}; the plan was made for another network"
        )
    for guide in _module_guides(swap):
        if guide == swap.target or swap.target.startswith(f"{guide}.") or guide == "":
            raise HotswapError(
                f"guide {guide!r} contains target {swap.target!r}, so it is not known before it; "
                "name a module that runs earlier"
            )


def _module_guides(swap: Swap) -> tuple[str, ...]:
    return tuple(source for source in swap.guide if source != INPUT)


def _check_openable(path: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise HotswapError(
            f"module {path!r} is a ScriptModule, whose code cannot be edited; convert the eager network"
        )
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for name in hooks):
        raise HotswapError(
            f"module {path!r} has hooks, which the rewritten forward would not call; "
            "remove them, or choose a guide and targets in one part of the network"
        )


def _check_root(path: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise HotswapError(
            f"module {path or 'the network'!r} is a {type(module).__name__}, whose forward is generated already; "
            "convert the eager network it was made from"
        )
    if "forward" in module.__dict__:
        raise HotswapError(
            f"module {path or 'the network'!r} has had its forward replaced on the instance, which a rewritten class "
            "would not change; undo that first"
        )


# --- where ----------------------------------------------------------------------------------------------


def _all_paths(modules: dict[str, nn.Module], *paths: str) -> set[str]:
    """Every path under which these modules are registered: one shared by two parents may be called by either."""
    wanted = {id(modules[path]) for path in paths}
    return {path for path, module in modules.items() if id(module) in wanted}


def _parents(path: str) -> list[str]:
    """Paths of all modules around a path, from the nearest to the network itself, which is ""."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, -1, -1)]


def _lowest_common_caller(
    modules: dict[str, nn.Module], inside: Iterable[str], observation: Observation | None
) -> str:
    """The deepest module around all of `inside` that is called, rather than being only a container."""
    first, *others = (_parents(path) for path in sorted(inside))
    for path in first:
        if not all(path in other for other in others):
            continue
        module = modules[path]
        called = observation is None or any(observation.first(name) for name in _all_paths(modules, path))
        if path == "" or (called and type(module).forward is not nn.Module.forward):
            return path
    return ""


# --- the edit -------------------------------------------------------------------------------------------


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
            raise HotswapError(f"target {swap.target!r} is never called by {type(root).__name__}; name one that is")
        for target in targets:
            taps = []
            for source in swap.guide:
                if source == INPUT:
                    taps.append(_image(graph, root))
                    continue
                call = _guide_call(calls.get(id(modules[source]), []), source, target, swap, position)
                tap = after_activation(call, root) if swap.after_activation else call
                if position[tap] > position[target]:
                    raise _too_late(source, swap)
                taps.append(tap)
            work.append((target, tuple(taps), swap))
    work.sort(key=lambda item: position[item[0]])
    guide_of: dict[Node, Node] = {}  # activation -> what to read, a copy where it is overwritten later
    latest: dict[tuple[Any, ...], Node] = {}  # what makes distances equal but for the size -> the last made
    for target, activations, swap in work:
        for tap, source in zip(activations, swap.guide, strict=True):
            if tap not in guide_of:
                guide_of[tap] = _unchanging(graph, tap, root, source)
        conv = modules[swap.target]
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 (checked by prepare)
        like = target.args[0] if target.args else target.kwargs["input"]
        guides = tuple(guide_of[tap] for tap in activations)
        asymmetric = kernels.parse(swap.kernel).asymmetric
        key = (guides, window_of(conv), conv.padding_mode, swap.resize, asymmetric)
        with graph.inserting_before(target):
            size = graph.call_function(image_size, (swap.target, like))
            latest[key] = graph.call_function(window_distance, (swap.guide, guides, size, *key[1:], latest.get(key)))
            distance = graph.call_function(operator.getitem, (latest[key], 1))
        target.args, target.kwargs = (like, distance), {}
    graph.lint()


def _image(graph: torch.fx.Graph, root: nn.Module) -> Node:
    """The first argument of the rewritten method, as it receives it."""
    first: Node | None = next((node for node in graph.nodes if node.op == "placeholder"), None)
    if first is None:
        raise HotswapError(f"guide {INPUT!r} is the network's first argument, and {type(root).__name__} takes none")
    return first


def _guide_call(guides: Sequence[Node], source: str, target: Node, swap: Swap, position: dict[Node, int]) -> Node:
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


def _too_late(source: str, swap: Swap) -> HotswapError:
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

    def by_mode(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        mixed = [path for path in opened if self.get_submodule(path).training is not self.training]
        if mixed:
            raise HotswapError(
                f"{type(self).__name__} is in {'training' if self.training else 'evaluation'} mode and {mixed[0]} is "
                "not; it does different things in the two modes, and was rewritten for one mode at a time"
            )
        return (training if self.training else evaluation)(self, *args, **kwargs)

    by_mode.__name__ = traced.method
    return by_mode


def _compile(root: nn.Module, graph: torch.fx.Graph) -> Callable[..., Any]:
    function: Callable[..., Any] = type(torch.fx.GraphModule(root, graph)).forward
    return function
