"""Proxies that have the type of the values they stand for in the running network.

Code that is traced asks `isinstance(x, torch.Tensor)`, and a proxy of torch.fx is no tensor. Here it answers with the
type of its value in the running network: the nodes traced so far are run again on fake tensors, from the arguments of
one run. Sizes stay open; their number (`len(x.shape)`) counts as type.
"""

import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx import Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute, TraceError

from hotswap.network.dry_run import Given, emptied, on_fake_tensors
from hotswap.network.preserve import random_numbers_kept

UNKNOWN = object()  # for values
_OWN = ("torch.fx.", "hotswap.")  # whose code takes a proxy for a proxy


class Standing:
    """The values that the nodes of a graph stand for.

    Args:
        root: the module that is traced.
        arguments: of the traced method, by name; None where they are not known.
    """

    def __init__(self, root: nn.Module, arguments: Mapping[str, Any] | None) -> None:
        self.root, self.arguments = root, arguments
        self.running = False  # modules called now are not traced
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[Node, Any] = {}

    def value(self, proxy: Proxy) -> Any:
        """The value of a proxy, on fake tensors; UNKNOWN where it cannot be computed."""
        if isinstance(proxy, Attribute):
            owner = self.value(proxy.root)
            return UNKNOWN if owner is UNKNOWN else getattr(owner, proxy.attr, UNKNOWN)
        node = proxy.node
        if node not in self._values:
            needed, waiting = {node}, [node]
            while waiting:
                new = [x for x in waiting.pop().all_input_nodes if x not in needed and x not in self._values]
                needed.update(new)
                waiting += new
            with self._running(), random_numbers_kept(), on_fake_tensors(self._fake):
                for each in node.graph.nodes:
                    if each in needed:
                        self._values[each] = self._computed(each)
        return self._values[node]

    def run(self, function: Callable[..., Any], *values: Any) -> Any:
        """Call a function on values, untraced."""
        with self._running(), random_numbers_kept(), on_fake_tensors(self._fake):
            return function(*values)

    @contextmanager
    def _running(self) -> Iterator[None]:
        self.running = True
        try:
            yield
        finally:
            self.running = False

    def _computed(self, node: Node) -> Any:
        if any(self._values[x] is UNKNOWN for x in node.all_input_nodes):
            return UNKNOWN
        try:
            if node.op == "placeholder":
                return emptied(UNKNOWN if self.arguments is None else self.arguments.get(str(node.target), UNKNOWN))
            args, kwargs = map_arg((node.args, node.kwargs), self._values.__getitem__)
            return self._called(node, args, kwargs)
        except Exception:  # noqa: BLE001 (whatever code raises on fake tensors: then it is not known)
            return UNKNOWN

    def _called(self, node: Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        if node.op == "call_function":
            return target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        attribute: Any = self.root
        for name in str(target).split("."):
            attribute = getattr(attribute, name)
        if node.op == "get_attr":
            return attribute
        buffers: dict[str, Tensor] = {}  # fake ones too, as it may write to them
        for name, x in attribute.named_buffers():
            buffers[name] = self._fake.from_tensor(x)
        return functional_call(attribute, buffers, args, kwargs)


def arguments_of(root: nn.Module, given: Given | None) -> dict[str, Any] | None:
    """The arguments of a module's forward by name, as one run gave them to it."""
    if given is None:
        return None
    bound = inspect.signature(type(root).forward).bind(root, *given.args, **given.kwargs)
    bound.apply_defaults()
    return bound.arguments


class TypedProxy(Proxy):
    """A proxy whose `__class__`, which isinstance asks, is that of the value it stands for."""

    tracer: "TypedTracer"

    def _kind(self) -> Any:
        """The type of the value; for torch.fx, of the proxy.

        So for C++ too, which takes whatever says that it is a tensor for one, and would crash: a function that
        torch.jit.script made, or `torch.autograd.Function.apply`.
        """
        frame = sys._getframe(1)
        asked = not _is_own(frame) and _asks_type(frame.f_code, frame.f_lasti)
        return self.tracer.kind(self) if asked else type(self)

    __class__: Any = property(_kind)

    def __getattr__(self, k: str) -> Attribute:
        # Code that asks hasattr for what no tensor has gets the value's answer.
        if not hasattr(Tensor, k) and not _is_own(sys._getframe(1)):
            value = self.tracer.standing.value(self)
            if value is not UNKNOWN and not hasattr(value, k):
                raise AttributeError(f"{type(value).__name__!r} object has no attribute {k!r}")
        return TypedAttribute(self, k)

    def __len__(self) -> int:
        value = self.tracer.standing.value(self)
        return len(value) if isinstance(value, torch.Size) else Proxy.__len__(self)


class TypedAttribute(TypedProxy, Attribute):
    """A typed proxy of `x.name`."""


class TypedTracer(torch.fx.Tracer):
    """Traces with typed proxies."""

    standing: Standing

    def proxy(self, node: Node) -> Proxy:
        """A typed one."""
        return TypedProxy(node, self)

    def kind(self, proxy: Proxy) -> type:
        """The type of the value that a proxy stands for.

        Raises:
            TraceError: where it is not known.
        """
        value = self.standing.value(proxy)
        if value is UNKNOWN:
            raise TraceError("it asks for the type of a value, which is not known without running the network")
        if isinstance(value, Tensor):
            self.asked(proxy)
            return nn.Parameter if isinstance(value, nn.Parameter) else Tensor
        return type(value)

    def asked(self, proxy: Proxy) -> None:
        """Called when code is told that a value is a tensor."""

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See torch.fx; modules that are run for the type of their output are called."""
        return forward(*args, **kwargs) if self.standing.running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """See torch.fx; modules that are run for the type of their output get their own attributes."""
        return attr_val if self.standing.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """See torch.fx; the sizes of a tensor can be iterated over, as their number is known."""
        value = self.standing.value(obj)
        if isinstance(value, torch.Size):
            return iter([obj[index] for index in range(len(value))])  # type: ignore[index]
        items: Iterator[Any] = super().iter(obj)
        return items


@functools.cache
def _asks_type(code: CodeType, instruction: int) -> bool:
    """Whether an instruction of Python code is one that asks for a type: isinstance, a match, or `x.__class__`."""
    instructions = list(dis.get_instructions(code))
    asking = next(i for i in instructions if i.offset == instruction)
    if asking.opname in ("LOAD_ATTR", "LOAD_METHOD", "MATCH_CLASS"):
        return True
    if code.co_name == "__instancecheck__":  # which isinstance calls, and which passes it on
        return True
    begin = _begin(asking)
    loads = [i for i in instructions if i.opname.startswith("LOAD") and i.offset < instruction]
    asked = [i.offset for i in loads if i.argval == "isinstance" and _begin(i) == begin]
    if asked and any(i.argval in _LEGACY for i in loads if i.offset > asked[-1]):  # which C++ asks, and would crash
        raise TraceError("it asks for the dtype of a value, which is not known without running the network")
    return bool(asked)


_LEGACY = {name for name, kind in vars(torch).items() if type(kind) is type(torch.FloatTensor)}


def _begin(instruction: dis.Instruction) -> tuple[int | None, int | None]:
    at = instruction.positions
    return (None, None) if at is None else (at.lineno, at.col_offset)


def _is_own(frame: FrameType) -> bool:
    return f"{frame.f_globals.get('__name__', '')}.".startswith(_OWN)
