"""A `torch.fx` tracer that opens only the modules that are named, and notes their calls.

Every other module stays a single node, so control flow inside it does not matter.
"""

import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.proxy import Attribute, Proxy, TraceError

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Like
from hotswap.network.graph_modules import called, graph_of, placeholders, stepped
from hotswap.surgery.handed import HANDED, Handed, hand
from hotswap.surgery.proxies import Standing, TypedTracer
from hotswap.surgery.registry import fixed_arguments, leaf_functions
from hotswap.surgery.structures import UnknownStructureError, rebuilt
from hotswap.targets.forward_ops import require_given, require_value

OPENED = "hotswap_opened"  # in the metadata of a node: the calls whose code made it, from the outermost


@dataclass(frozen=True)
class OpenedCall:
    """A call of a module that was traced through; its values are nodes, and tuples, lists and dicts of them."""

    path: str  # relative to the root
    known: bool = False  # whether the values are
    args: Any = ()
    kwargs: Any = None
    output: Any = None

    def renamed(self, nodes: Mapping[Node, Node]) -> "OpenedCall":
        """This call after some nodes were replaced by others."""
        args, kwargs, output = rebuilt((self.args, self.kwargs, self.output), lambda node: nodes.get(node, node))
        return replace(self, args=args, kwargs=kwargs, output=output)


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
        super().__init__(autowrap_functions=leaf_functions())
        self.opened = frozenset(opened)
        self.standing = standing
        self.traced_func_name = method
        self.given = given
        self._records_gradients = torch.is_grad_enabled()
        self._required: set[Node] = set()  # arguments that must be tensors, as code branches on it
        self.calls: list[OpenedCall] = []
        self._running: list[int] = []  # the calls that go on now

    def asked(self, proxy: Proxy) -> None:
        """Have the graph refuse calls without a tensor for an argument whose type the code asks for."""
        if not isinstance(proxy, Attribute) and proxy.node.op == "placeholder" and proxy.node not in self._required:
            self._required.add(proxy.node)
            checked = (self.traced_func_name, str(proxy.node.target), proxy)
            self.create_proxy("call_function", require_given, checked, {})

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Everything but the modules on the way down to an edit."""
        return module_qualified_name not in self.opened

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: Any = None) -> torch.fx.Graph:
        """See torch.fx; the inputs of a GraphModule keep their structure."""
        graph: torch.fx.Graph = super().trace(root, concrete_args)
        if isinstance(root, GraphModule):
            graph.set_codegen(graph_of(root)._codegen)
        return graph

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See torch.fx; an opened GraphModule is traced node by node, and a `Handed` in the call is kept."""
        by_node = called(m, self) if isinstance(m, GraphModule) else None
        handed: Handed | None = kwargs.get(HANDED)
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            return self._opened(m, path, by_node or forward, args, kwargs)
        if handed is None:
            return super().call_module(m, forward, args, kwargs)
        given = self.create_proxy("call_function", hand, (handed.code,), handed.values)
        output = super().call_module(m, forward, args, {**kwargs, HANDED: given})
        handed.traced = given
        return output

    def _opened(self, m: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace through a module, and note its call."""
        number = len(self.calls)
        self.calls.append(OpenedCall(path))
        try:
            plain = {key: value for key, value in kwargs.items() if key != HANDED}
            given = rebuilt((tuple(args), plain), self._node)
        except UnknownStructureError:
            given = None
        self._running.append(number)
        try:
            output = super().call_module(m, forward, args, kwargs)
        finally:
            self._running.pop()
        if given is not None:
            with suppress(UnknownStructureError):
                self.calls[number] = OpenedCall(path, True, given[0], given[1], rebuilt(output, self._node))
        return output

    def _node(self, value: Any) -> Node:
        if isinstance(value, Tensor):
            value = self.create_arg(value)
        if isinstance(value, Proxy):
            value = value.node
        if not isinstance(value, Node):
            raise UnknownStructureError
        return value

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """Refuse as torch.fx does, with the module whose output it is."""
        source = obj.node
        while source.target is operator.getitem and isinstance(source.args[0], Node):
            source = source.args[0]
        if source.op == "call_module":
            raise UnpackedError(str(source.target))
        items: Iterator[Any] = super().iter(obj)
        return items

    def create_arg(self, a: Any) -> Any:
        """See torch.fx; an OrderedDict stays one, as networks return it on purpose."""
        if isinstance(a, Proxy):  # before torch.fx looks whether it is a parameter
            return a.node
        if type(a) is OrderedDict:
            items = [[key, self.create_arg(value)] for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (items,), {})
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        """See torch.fx; refuse code that switches the recording of gradients, which a graph cannot.

        Such is the code in `with torch.no_grad():` and in functions with a gradient of their own.
        """
        if torch.is_grad_enabled() != self._records_gradients:
            raise TraceError(
                "part of it switches gradients off or on, or is an autograd.Function with one of its own"
            )
        node = super().create_node(*args, **kwargs)
        node.meta[OPENED] = tuple(self._running)
        return node

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make the graph's inputs: one for each parameter; those with a default are fixed, but for given tensors.

        They are fixed at the value registered as concrete, or else that of the observed call, or else the default.
        The inputs of a GraphModule are those of its graph.
        """
        if isinstance(self.root, GraphModule):
            return stepped(self.root, self), placeholders(self.root, self)
        registered = fixed_arguments(self.root) if self.traced_func_name == "forward" else {}
        # No numbers: those may follow from sizes, and be others at the next.
        arguments = self.standing.arguments or {}
        observed = {k: x for k, x in arguments.items() if isinstance(x, bool | str | None)}
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
            given = position < self.given or isinstance(arguments.get(parameter.name), Like)
            if parameter.name in registered or (has_default and not given):
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
