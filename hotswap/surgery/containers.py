"""Modules between a guide and its targets stay called: one graph becomes a method for each module it went through.

A trace goes through the modules inside that hold guides or targets, and its graph has the code of all of them. Here
the graph is taken apart again at their calls. Each of these modules is called as in the network's own code, so that
its hooks run and wrappers around it act. One more keyword of the call, a `Handed`, has the values that its code needs
beside its arguments, and takes those that others need of it.
"""

import functools
import operator
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.fx
from torch import nn
from torch.fx import Graph, GraphModule, Node

from hotswap.network.derived import restore, subclass
from hotswap.surgery.code import Code
from hotswap.surgery.handed import HANDED, Handed, give, hand, take
from hotswap.surgery.path_tracer import OPENED, OpenedCall
from hotswap.surgery.structures import Place, leaves, rebuilt
from hotswap.targets.guided_layer import GuidedLayer

CODES = "_hotswap_codes"  # of a module that is called with a `Handed`, a plain attribute: a stack of `Codes`


@dataclass(frozen=True)
class ContainerCode:
    """The code of a module in a call with a `Handed`."""

    code: Code  # of (self, handed, *inputs)
    inputs: tuple[Place, ...]  # among its arguments


class Codes(NamedTuple):
    """The codes of a module; the number in a `Handed` chooses one."""

    path: str  # of the module, when it was swapped
    codes: tuple[ContainerCode, ...]


@functools.cache
def _container(plain: Any) -> Any:
    """A class whose instances run their own code when they are called with a `Handed`, else what they always did."""

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        handed: Handed | None = kwargs.pop(HANDED, None)
        if handed is None:
            return plain.forward(self, *args, **kwargs)
        handed.enter()
        code: ContainerCode = self.__dict__[CODES][-1].codes[handed.code]
        return code.code.run(self, handed, *(_value_at(args, kwargs, place) for place in code.inputs))

    return subclass(plain, (_container, plain), forward=forward)


def attach(module: nn.Module, codes: Codes) -> None:
    """Have a module run these codes when it is called with a `Handed`, in place. `detach` undoes the last."""
    stack = module.__dict__.setdefault(CODES, [])
    if not stack:
        plain: Any = type(module)
        module.__class__ = _container(plain)
    stack.append(codes)


def detach(module: nn.Module) -> None:
    """Undo the last `attach`, in place."""
    module.__dict__[CODES].pop()
    if not module.__dict__[CODES]:
        del module.__dict__[CODES]
        restore(module, _container)


def is_steered(module: nn.Module) -> bool:
    """Whether a module takes guides, or hands them on."""
    return CODES in module.__dict__ or isinstance(module, GuidedLayer)


def attached(root: nn.Module) -> dict[str, nn.Module]:
    """The modules in a network that run such codes, by their paths when it was swapped."""
    return {codes.path: module for module in root.modules() for codes in module.__dict__.get(CODES, ())}


@dataclass
class Split:
    """Graphs of a module taken apart."""

    root: nn.Module
    codes: dict[str, list[ContainerCode]] = field(default_factory=dict)  # by path in the root
    swallowed: set[str] = field(default_factory=set)  # modules that cannot be called with more

    def take_apart(self, graph: Graph, calls: Sequence[OpenedCall]) -> Graph:
        """The root's own graph, which calls the modules that `graph` has the code of; their code goes to `codes`."""
        swallowed = {call.path for call in calls if not call.known}
        while True:
            apart = _Apart(self.root, graph, calls, swallowed, {path: [*codes] for path, codes in self.codes.items()})
            try:
                root_graph = apart.root_graph()
            except _CannotBeCalledError as error:
                swallowed.add(error.path)
            else:
                self.codes, self.swallowed = apart.codes, self.swallowed | swallowed
                return root_graph


class _CannotBeCalledError(Exception):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass
class _Level:
    """A graph under construction: of the root, or of one call."""

    graph: Graph
    prefix: str  # of paths in it
    module: nn.Module
    depth: int
    nodes: dict[Node, Node]  # of the whole graph -> of this one
    call: int | None

    def mapped(self, argument: Any) -> Any:
        return torch.fx.node.map_arg(argument, self.nodes.__getitem__)


class _Apart:
    def __init__(
        self,
        root: nn.Module,
        graph: Graph,
        calls: Sequence[OpenedCall],
        swallowed: Collection[str],
        codes: dict[str, list[ContainerCode]],
    ) -> None:
        self.root, self.graph, self.calls, self.swallowed, self.codes = root, graph, calls, swallowed, codes
        self.stacks = {node: self._stack(node) for node in graph.nodes}
        # Calls pass their arguments on, and return their outputs, whether or not a node of theirs reads these.
        self.passed: dict[Node, list[tuple[int, ...]]] = {}
        started = {self.stacks[node][: depth + 1] for node in graph.nodes for depth in range(len(self.stacks[node]))}
        for stack in started:
            call = calls[stack[-1]]
            for _, node in leaves((call.args, call.kwargs)):
                self.passed.setdefault(node, []).append(stack[:-1])
            for _, node in leaves(call.output):
                self.passed.setdefault(node, []).append(stack)

    def _stack(self, node: Node) -> tuple[int, ...]:
        stack: tuple[int, ...] = node.meta.get(OPENED, ())
        return tuple(call for call in stack if self.calls[call].path not in self.swallowed)

    def root_graph(self) -> Graph:
        new = Graph(self.graph.owning_module)
        new._codegen = self.graph._codegen
        level = _Level(new, "", self.root, 0, {}, None)
        self._fill(level, list(self.graph.nodes))
        new.lint()
        return new

    def _fill(self, level: _Level, nodes: Sequence[Node]) -> None:
        """Copy the nodes of one level; nodes inside a call become that call."""
        at = 0
        while at < len(nodes):
            stack = self.stacks[nodes[at]]
            if len(stack) == level.depth:
                self._copy(level, nodes[at])
                at += 1
                continue
            call = stack[level.depth]
            end = at
            while end < len(nodes) and self.stacks[nodes[end]][level.depth : level.depth + 1] == (call,):
                end += 1
            if any(self.stacks[node][level.depth : level.depth + 1] == (call,) for node in nodes[end:]):
                raise _CannotBeCalledError(self.calls[call].path)
            self._call(level, call, nodes[at:end])
            at = end

    def _copy(self, level: _Level, node: Node) -> None:
        target: Any = node.target
        if node.op in ("call_module", "get_attr"):
            target = self._path(level, node)
        args, kwargs = level.mapped(node.args), level.mapped(node.kwargs)
        name = node.name if level.call is None else None  # else calls that are alike have the same code
        new = level.graph.create_node(node.op, target, args, kwargs, name, node.type)
        new.meta = {key: value for key, value in node.meta.items() if key != OPENED}
        level.nodes[node] = new

    def _path(self, level: _Level, node: Node) -> str:
        """The path of a module or tensor in the module whose graph is under construction."""
        path = str(node.target)
        if path.startswith(level.prefix):
            return path.removeprefix(level.prefix)
        if node.op == "call_module":
            wanted = self.root.get_submodule(path)
            for other, module in level.module.named_modules(remove_duplicate=False):
                if module is wanted and other:
                    return str(other)
        assert level.call is not None  # noqa: S101 (the root has all paths)
        raise _CannotBeCalledError(self.calls[level.call].path)

    def _call(self, outer: _Level, number: int, nodes: Sequence[Node]) -> None:
        call, stack = self.calls[number], self.stacks[nodes[0]][: outer.depth + 1]
        prefix = f"{call.path}."
        # Tensors that the traced code made itself are the root's.
        for node in nodes:
            if node.op == "get_attr" and not str(node.target).startswith(prefix):
                self._copy(outer, node)
        nodes = [node for node in nodes if node not in outer.nodes]
        inside = set(nodes)
        module = self.root.get_submodule(call.path)
        if not callable_with_more(module) or not call.path.startswith(outer.prefix):
            raise _CannotBeCalledError(call.path)
        output, arguments = list(leaves(call.output)), list(leaves((call.args, call.kwargs)))
        inputs = {node: place[1:] for place, node in reversed(arguments)}
        needed = dict.fromkeys(x for node in nodes for x in node.all_input_nodes)
        needed |= dict.fromkeys(node for _, node in output)
        handed_in = [node for node in needed if node not in inside and node not in inputs]
        wanted = [node for node in nodes if self._used_outside(node, inside, stack)]
        returned = {node: place for place, node in reversed(output) if node in inside}
        given = [node for node in wanted if node not in returned]
        # The module's own graph.
        level = _Level(Graph(), prefix, module, outer.depth + 1, {}, number)
        handed = level.graph.placeholder("handed")
        for index, node in enumerate(inputs):
            level.nodes[node] = level.graph.placeholder(f"input_{index}")
        for index, node in enumerate(handed_in):
            level.nodes[node] = level.graph.call_function(take, (handed, f"in_{index}"))
        self._fill(level, nodes)
        for index, node in enumerate(given):
            level.graph.call_function(give, (handed, f"out_{index}", level.nodes[node]))
        level.graph.output(_returned(level.graph, rebuilt(call.output, level.nodes.__getitem__)))
        level.graph.lint()
        code = ContainerCode(Code.of(level.graph), tuple(inputs.values()))
        # Its call.
        if any(node not in outer.nodes for _, node in arguments):
            raise _CannotBeCalledError(call.path)
        values: dict[str, Any] = {f"in_{index}": outer.nodes[node] for index, node in enumerate(handed_in)}
        args, kwargs = (rebuilt(x, outer.nodes.__getitem__) for x in (call.args, call.kwargs))
        hands = outer.graph.call_function(hand, (self._number(call.path, code),), values)
        result = outer.graph.call_module(call.path.removeprefix(outer.prefix), args, {**kwargs, HANDED: hands})
        for node in wanted:
            if node in returned:
                value = result
                for key in returned[node]:
                    value = outer.graph.call_function(operator.getitem, (value, key))
                outer.nodes[node] = value
        for index, node in enumerate(given):
            outer.nodes[node] = outer.graph.call_function(take, (hands, f"out_{index}"))

    def _used_outside(self, node: Node, inside: set[Node], stack: tuple[int, ...]) -> bool:
        passed = any(other[: len(stack)] != stack for other in self.passed.get(node, ()))
        return passed or any(user not in inside for user in node.users)

    def _number(self, path: str, code: ContainerCode) -> int:
        """The number of a code among the module's; calls that are alike share one."""
        codes = self.codes.setdefault(path, [])
        if code not in codes:
            codes.append(code)
        return codes.index(code)


def callable_with_more(module: nn.Module) -> bool:
    """Whether a module can be called with one more keyword."""
    return not isinstance(module, GraphModule) and "forward" not in module.__dict__


def _returned(graph: Graph, value: Any) -> Any:
    """An output that torch.fx takes: as a plain dict it would forget the order that an OrderedDict promises."""
    if type(value) is OrderedDict:
        return graph.call_function(OrderedDict, ([[key, item] for key, item in value.items()],))
    return value


def _value_at(args: Sequence[Any], kwargs: Mapping[str, Any], place: Place) -> Any:
    first, *keys = place
    value = args[first] if isinstance(first, int) else kwargs[first]
    for key in keys:
        value = value[key]
    return value
