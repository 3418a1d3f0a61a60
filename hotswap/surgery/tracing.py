"""A `torch.fx` tracer that opens only the modules an edit has to touch.

Every other module stays a single node, so control flow inside it does not matter. Three more things keep the
graph true to the code it replaces. Arguments with a default are taken at that default, or at a value
that was registered for them, and a call that passes anything else is refused at run time instead of being answered
wrongly. Where the traced code differs
between training and evaluation, both are kept. And where a method called by `forward` holds the whole edit
(timm's `forward_features`, say), that method is traced instead, so it stays usable by itself.
"""

import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.proxy import Attribute, Proxy, TraceError

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Call, like, mode
from hotswap.network.graph_modules import called, graph_of, placeholders, stepped
from hotswap.network.preserve import (
    cached_tensors,
    contents_kept,
    random_numbers_kept,
    random_state,
    untouched,
    written_back,
)
from hotswap.surgery.activations import is_in_place
from hotswap.surgery.input_checks import called_as_they_are, own_methods
from hotswap.surgery.proxies import Standing, TypedTracer, arguments_of
from hotswap.surgery.registry import fixed_arguments, leaf_functions
from hotswap.targets.forward_ops import guide_copy, require_given, require_value, same


@dataclass(frozen=True)
class Traced:
    """One method of one module as graphs."""

    root: nn.Module
    method: str
    training: torch.fx.Graph
    evaluation: torch.fx.Graph
    constants: dict[str, Any]  # tensors the traced code makes itself, by the attribute the graphs read them from
    opened: tuple[str, ...]  # the modules traced through, relative to root


class UntraceableError(HotswapError):
    """Code that cannot be made a graph: what hooks are for."""


class UnpackedError(Exception):
    """The traced code unpacks what a module returns that is not opened, so that nobody knows how much it is."""

    def __init__(self, module: str) -> None:
        super().__init__(f"it unpacks what {module!r} returns")
        self.module = module  # relative to the root


class PathTracer(TypedTracer):
    """Traces one method of a root module, opening only the submodules named in `opened`."""

    def __init__(
        self, opened: Collection[str], standing: Standing, method: str = "forward", *, given: int = 0
    ) -> None:
        super().__init__(autowrap_functions=(*leaf_functions(), guide_copy))
        self.opened = frozenset(opened)
        self.standing = standing
        self.traced_func_name = method
        self.given = given
        self._records_gradients = torch.is_grad_enabled()
        self._required: set[Node] = set()  # arguments that must be tensors, as code branches on it

    def asked(self, proxy: Proxy) -> None:
        """Refuse calls with anything else than a tensor for an argument that code asked the type of."""
        if not isinstance(proxy, Attribute) and proxy.node.op == "placeholder" and proxy.node not in self._required:
            self._required.add(proxy.node)
            checked = (self.traced_func_name, str(proxy.node.target), proxy)
            self.create_proxy("call_function", require_given, checked, {})

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Everything but the modules on the way down to an edit."""
        return module_qualified_name not in self.opened

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: Any = None) -> torch.fx.Graph:
        """As torch.fx; the inputs of a GraphModule stay arranged as they are."""
        graph: torch.fx.Graph = super().trace(root, concrete_args)
        if isinstance(root, GraphModule):
            graph.set_codegen(graph_of(root)._codegen)
        return graph

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As torch.fx; a GraphModule that is opened is gone through node by node."""
        by_node = called(m, self) if isinstance(m, GraphModule) else None
        return super().call_module(m, by_node or forward, args, kwargs)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """Refuse, as torch.fx does, but say whose output it is."""
        source = obj.node
        while source.target is operator.getitem and isinstance(source.args[0], Node):
            source = source.args[0]
        if source.op == "call_module":
            raise UnpackedError(str(source.target))
        found: Iterator[Any] = super().iter(obj)
        return found

    def create_arg(self, a: Any) -> Any:
        """As torch.fx, but an OrderedDict stays one: networks return it, and mean it."""
        if isinstance(a, Proxy):  # before torch.fx looks whether it is a parameter
            return a.node
        if type(a) is OrderedDict:
            items = [[key, self.create_arg(value)] for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (items,), {})
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        """As torch.fx; refuse code that records gradients otherwise than the code around it, as graphs do not.

        That of `with torch.no_grad():`, and of functions with a gradient of their own.
        """
        if torch.is_grad_enabled() != self._records_gradients:
            raise TraceError(
                "part of it switches gradients off or on, or is an autograd.Function with one of its own"
            )
        return super().create_node(*args, **kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make the graph's inputs: one a parameter, those with a default fixed but for the given ones.

        At the value registered as concrete, or else what the observed call had, or else the default. Those of a
        GraphModule are those of its graph.
        """
        if isinstance(self.root, GraphModule):
            return stepped(self.root, self), placeholders(self.root, self)
        registered = fixed_arguments(self.root) if self.traced_func_name == "forward" else {}
        # No numbers: those may follow from sizes, and be others at the next.
        observed = {k: x for k, x in (self.standing.arguments or {}).items() if isinstance(x, bool | str | None)}
        fixed = observed | registered
        positional: list[Any] = [self.root]
        keywords: dict[str, Any] = {}
        for position, parameter in enumerate(list(inspect.signature(root_fn).parameters.values())[1:]):
            if parameter.kind is parameter.VAR_POSITIONAL:
                raise HotswapError(f"it takes *{parameter.name}, an unknown number of inputs")
            if parameter.kind is parameter.VAR_KEYWORD:
                continue  # calls with keywords it does not name fail, as Python functions do
            has_default = parameter.default is not parameter.empty
            default = (parameter.default,) if has_default else ()
            value = self.create_proxy("placeholder", parameter.name, default, {})
            if parameter.name in registered or (has_default and position >= self.given):
                only = fixed.get(parameter.name, parameter.default)
                checked = (self.traced_func_name, parameter.name, value, only)
                self.create_proxy("call_function", require_value, checked, {})
                value = only
            elif has_default:
                self.create_proxy("call_function", require_given, (self.traced_func_name, parameter.name, value), {})
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[parameter.name] = value
            else:
                positional.append(value)
        return (lambda *args: root_fn(*args, **keywords)), positional


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
    own = [p for module in through for p in module._parameters.values() if p is not None]
    with written_back([*root.buffers(), *own]) as written:
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
    if written:
        raise _untraceable(
            root, start.method, RuntimeError("it writes to a buffer, which a graph would not do again")
        )
    if any(constant is tensor for constant in traced.constants.values() for tensor in cached):
        stale = RuntimeError("it reads a tensor that the network computed in an earlier run, which would grow stale")
        raise _untraceable(root, start.method, stale)
    for graph in (traced.training, traced.evaluation):
        if name := _overwritten_constant(graph, root, traced.constants):
            made_once = RuntimeError(f"it changes a tensor in place ({name}) that a graph would make only once")
            raise _untraceable(root, start.method, made_once)
    return traced


def _traced(root: nn.Module, through: Sequence[nn.Module], opened: Collection[str], start: "_Start") -> Traced:
    """One trace in each mode."""
    with untouched(root.modules()), _new_attributes(root) as constants:
        with contents_kept(through), mode(root, training=True):
            training = _trace(root, opened, start)
        with contents_kept(through), mode(root, training=False):
            evaluation = _trace(root, opened, start)
    return Traced(root, start.method, training, evaluation, constants, tuple(sorted(opened)))


def _alike(a: Traced, b: Traced) -> bool:
    """Whether two traces are the same code with the same tensors."""
    graphs = ((a.training, b.training), (a.evaluation, b.evaluation))
    if any(one.python_code("self").src != two.python_code("self").src for one, two in graphs):
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
    with called_as_they_are(root), _recorded_methods(root) as recorded:
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


def _trace(root: nn.Module, opened: Collection[str], start: _Start) -> torch.fx.Graph:
    try:
        standing = Standing(root, start.arguments)
        with called_as_they_are(root), _autocast_refused(standing):
            graph = PathTracer(opened, standing, start.method, given=start.given).trace(root)
        graph.lint()
    except UnpackedError:
        raise
    except Exception as error:  # whatever the user's code does when handed proxies
        raise _untraceable(root, start.method, error) from error
    return graph


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
def _recorded_methods(root: nn.Module) -> Iterator[list[_MethodCall]]:
    """Note which of root's own methods are called while its forward is traced, and which nodes each made."""
    calls: list[_MethodCall] = []
    wrapped = [name for name in own_methods(type(root)) if name not in root.__dict__]

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
            plain = _only_inputs(bound, args, kwargs)
            calls.append(_MethodCall(name, plain, first_argument, inputs, first, len(nodes)))
            return result

        return recorder

    for name in wrapped:
        root.__dict__[name] = wrap(name)
    try:
        yield calls
    finally:
        for name in wrapped:
            del root.__dict__[name]


def _only_inputs(bound: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    for parameter, value in inspect.signature(bound).bind(*args, **kwargs).arguments.items():
        default = inspect.signature(bound).parameters[parameter].default
        if default is inspect.Parameter.empty:
            if not isinstance(value, Proxy):
                return False
        elif not same(value, default):
            return False
    return True
