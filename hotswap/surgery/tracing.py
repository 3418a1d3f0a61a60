"""Traces one method of a module, in training and in evaluation, opening only the modules an edit has to touch.

Three things keep the graphs true to the code they replace:

- Arguments with a default are taken at that default, or at a value that was registered for them. A call that passes
  anything else is refused at run time instead of being answered wrongly.
- Where the traced code differs between training and evaluation, both are kept.
- Where a method called by `forward` holds the whole edit (timm's `forward_features`, say), that method is traced
  instead, so it stays usable by itself.
"""

import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.proxy import Proxy, TraceError

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Call, like, mode
from hotswap.network.preserve import (
    cached_tensors,
    contents_kept,
    random_numbers_kept,
    random_state,
    untouched,
    written_back,
)
from hotswap.surgery.activations import is_in_place
from hotswap.surgery.input_checks import called_as_they_are
from hotswap.surgery.path_tracer import OpenedCall, PathTracer, UnpackedError
from hotswap.surgery.proxies import Standing, arguments_of
from hotswap.targets.forward_ops import same


@dataclass(frozen=True)
class Traced:
    """One method of one module as graphs."""

    root: nn.Module
    method: str
    graphs: tuple[torch.fx.Graph, torch.fx.Graph]  # of training and of evaluation
    calls: tuple[Sequence[OpenedCall], Sequence[OpenedCall]]  # of the opened modules, in training and in evaluation
    constants: dict[str, Any]  # tensors the traced code makes itself, by the attribute the graphs read them from
    opened: tuple[str, ...]  # the modules traced through, relative to root


class UntraceableError(HotswapError):
    """Code that cannot be made a graph: what hooks are for."""


class _Start(NamedTuple):
    """Where to begin."""

    method: str
    given: int = 0  # how many arguments are tensors, also where they have a default
    arguments: Mapping[str, Any] | None = None  # by name, with a Like in place of each tensor; None if not known


def trace(
    root: nn.Module,
    opened: Collection[str],
    inside: Collection[str] | None,
    *,
    from_input: bool = False,
    call: Call | None = None,
) -> Traced:
    """Trace the method of `root` that holds every call of the modules in `inside`, in both modes.

    Args:
        root: the module to trace. Neither it nor its modes are changed.
        opened: paths, relative to root, of the modules to trace through.
        inside: paths, relative to root, of the modules the edit needs to see called; None for `forward`, whatever
            it calls.
        from_input: whether the edit needs root's own input too: the first argument of the method is then the very
            one that `forward` was called with.
        call: of root, in one run: its first tensors stay arguments also where they have a default, and code that asks
            for the types of values is answered by what they were.

    Raises:
        HotswapError: where the code cannot be traced, with the reason.
        UnpackedError: where it can be, perhaps, with one more module opened.
    """
    through = [root, *(root.get_submodule(path) for path in opened)]
    cached = cached_tensors(through)
    known = (0, None) if call is None else (call.tensors, arguments_of(root, call.given))
    start = _Start("forward", *known)
    parameters = [p for module in through for p in module._parameters.values() if p is not None]
    with written_back([*root.buffers(), *parameters]) as written:
        if inside is not None and not isinstance(root, GraphModule):  # whose one method is forward
            with random_numbers_kept(), untouched(root.modules()):  # of a first pass that only looks
                start = _method_to_rewrite(root, opened, inside, start, from_input=from_input)
        with random_numbers_kept():
            before = random_state()
            traced = _traced(root, through, opened, start)
            drew = random_state() != before
        if drew:
            with random_numbers_kept(seed=1):
                again = _traced(root, through, opened, start)
            if not _alike(traced, again):
                frozen = RuntimeError("it depends on random numbers that a graph would not draw again")
                raise _untraceable(root, start.method, frozen)
    if untrue := _why_untrue(traced, written, cached):
        raise _untraceable(root, start.method, RuntimeError(untrue))
    return traced


def _why_untrue(traced: Traced, written: Sequence[Tensor], cached: Sequence[Tensor]) -> str | None:
    """Why graphs would not do what the traced code does, if they would not."""
    if written:
        return "it writes to a buffer, which a graph would not do again"
    if any(constant is tensor for constant in traced.constants.values() for tensor in cached):
        return "it reads a tensor that the network computed in an earlier run, which would grow stale"
    for graph in traced.graphs:
        if name := _overwritten_constant(graph, traced.root, traced.constants):
            return f"it changes a tensor in place ({name}) that a graph would make only once"
    return None


def _traced(root: nn.Module, through: Sequence[nn.Module], opened: Collection[str], start: "_Start") -> Traced:
    """One trace in each mode."""
    with untouched(root.modules()), _new_attributes(root) as constants:
        with contents_kept(through), mode(root, training=True):
            training, in_training = _trace(root, opened, start)
        with contents_kept(through), mode(root, training=False):
            evaluation, in_evaluation = _trace(root, opened, start)
    calls = (in_training, in_evaluation)
    return Traced(root, start.method, (training, evaluation), calls, constants, tuple(sorted(opened)))


def _alike(a: Traced, b: Traced) -> bool:
    """Whether two traces are the same code with the same tensors."""
    sources = ([graph.python_code("self").src for graph in traced.graphs] for traced in (a, b))
    if next(sources) != next(sources):
        return False
    return a.constants.keys() == b.constants.keys() and all(
        not isinstance(x, Tensor) or torch.equal(x, b.constants[name]) for name, x in a.constants.items()
    )


def _overwritten_constant(graph: torch.fx.Graph, root: nn.Module, constants: Mapping[str, Any]) -> str | None:
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in constants:
            for user in node.users:
                if user.args[:1] == (node,) and (is_in_place(user, root) or user.target is operator.setitem):
                    return str(user.name)
    return None


@contextmanager
def _new_attributes(root: nn.Module) -> Iterator[dict[str, Any]]:
    """Take back, into the mapping, the attributes in which torch.fx leaves tensors that the traced code makes."""
    before = set(root.__dict__)
    taken: dict[str, Any] = {}
    try:
        yield taken
    finally:
        taken.update({name: root.__dict__.pop(name) for name in set(root.__dict__) - before})


def _method_to_rewrite(
    root: nn.Module, opened: Collection[str], inside: Collection[str], start: _Start, *, from_input: bool
) -> _Start:
    """The innermost method of `root` that calls all modules in `inside`; `forward` itself if no other does."""
    standing = Standing(root, start.arguments)
    tracer = PathTracer(opened, standing, given=start.given)
    failure: Exception | None = None
    with called_as_they_are(root, standing) as names, _recorded_methods(root, names) as recorded:
        try:
            tracer.trace(root)
        except Exception as error:  # noqa: BLE001 (raised below, unless a method that is fine ended before it)
            failure = error
    nodes = list(tracer.graph.nodes)
    wanted = {id(root.get_submodule(path)) for path in inside}

    def called(first: int, last: int) -> list[int]:
        return [id(root.get_submodule(str(n.target))) for n in nodes[first:last] if n.op == "call_module"]

    for call in recorded:  # in the order in which they ended: the innermost first
        within = [module for module in called(call.first, call.last) if module in wanted]
        anywhere = [module for module in called(0, len(nodes)) if module in wanted]
        sees_input = call.first_argument is next((node for node in nodes if node.op == "placeholder"), None)
        if call.plain and set(within) == wanted and within == anywhere and (sees_input or not from_input):
            return _Start(call.method, arguments=like({k: standing.value(x) for k, x in call.inputs.items()}))
    if isinstance(failure, UnpackedError):
        raise failure
    if failure is not None:
        raise _untraceable(root, "forward", failure) from failure
    return start


def _trace(root: nn.Module, opened: Collection[str], start: _Start) -> tuple[torch.fx.Graph, Sequence[OpenedCall]]:
    try:
        standing = Standing(root, start.arguments)
        tracer = PathTracer(opened, standing, start.method, given=start.given)
        with called_as_they_are(root, standing), _autocast_refused(standing):
            graph = tracer.trace(root)
        graph.lint()
    except UnpackedError:
        raise
    except Exception as error:  # whatever the user's code does when handed proxies
        raise _untraceable(root, start.method, error) from error
    return graph, tracer.calls


@contextmanager
def _autocast_refused(standing: Standing) -> Iterator[None]:
    """Refuse code that switches autocast: a graph has no blocks, and would compute all of it in one precision."""
    kind: Any = torch.amp.autocast_mode.autocast
    plain = kind.__enter__

    def enter(self: Any) -> Any:
        if not standing.running:  # which runs closed modules, as they are
            raise TraceError("it switches autocast on or off, which a graph would not")
        return plain(self)

    kind.__enter__ = enter
    try:
        yield
    finally:
        kind.__enter__ = plain


def _untraceable(root: nn.Module, method: str, error: Exception) -> UntraceableError:
    reason = str(error).strip().splitlines()
    return UntraceableError(
        f"{type(root).__name__}.{method} cannot be traced by torch.fx ({type(error).__name__}: "
        f"{reason[0][:200] if reason else 'no message'}); choose a guide and targets inside one part of the "
        'network whose forward has no control flow that depends on data, or convert with method="hooks"'
    )


@dataclass
class _MethodCall:
    method: str
    plain: bool  # called with inputs only, everything else at its default
    first_argument: Node | None
    inputs: Mapping[str, Proxy]  # by name
    first: int  # position in the graph where it began
    last: int  # and where it ended


@contextmanager
def _recorded_methods(root: nn.Module, names: Sequence[str]) -> Iterator[list[_MethodCall]]:
    """Note which of root's methods, by name, are called while its forward is traced, and which nodes each made."""
    calls: list[_MethodCall] = []

    def wrap(name: str) -> Callable[..., Any]:
        bound = getattr(root, name)

        def recorder(*args: Any, **kwargs: Any) -> Any:
            proxies = [x for x in (*args, *kwargs.values()) if isinstance(x, Proxy)]
            if not proxies:
                return bound(*args, **kwargs)
            nodes = proxies[0].node.graph.nodes
            first = len(nodes)
            result = bound(*args, **kwargs)
            given = inspect.signature(bound).bind(*args, **kwargs).arguments
            first_input = next(iter(given.values()))
            first_argument = first_input.node if isinstance(first_input, Proxy) else None
            inputs = {key: x for key, x in given.items() if isinstance(x, Proxy)}
            plain = _only_inputs(bound, given)
            calls.append(_MethodCall(name, plain, first_argument, inputs, first, len(nodes)))
            return result

        return recorder

    before = {name: root.__dict__[name] for name in names}
    root.__dict__.update({name: wrap(name) for name in names})
    try:
        yield calls
    finally:
        root.__dict__.update(before)


def _only_inputs(method: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    """Whether a call gives a proxy for each parameter without a default, and for the others their defaults."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(method).parameters.items()}
    return all(
        isinstance(x, Proxy) if defaults[name] is inspect.Parameter.empty else same(x, defaults[name])
        for name, x in given.items()
    )
