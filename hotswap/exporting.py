"""`torch.export.export`, also of GraphModules, and of networks that read numbers from their own buffers.

Networks imported from ONNX are both. They keep the sizes that they enlarge to as buffers, and `tolist` them when they
run: the exporter, which knows no values of buffers, gives up there; it does know those of other attributes. And a
GraphModule's graph is gone through without its hooks being called.
"""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._ops import OperatorBase, OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from hotswap.open_sizes import OpenSizes
from pac_ops import standard

# Composite operations that are always decomposed, and that torch.onnx can write as they are.
_WRITTEN = (torch.ops.aten.reshape.default, torch.ops.aten.flatten.using_ints, torch.ops.aten.unflatten.int)
_MOST = 64  # numbers in one buffer: sizes, not tables


def program(model: nn.Module, arguments: tuple[Any, ...], dynamic_shapes: Any) -> ExportedProgram:
    """The network as an exported program, without pac_ops. Numbers that it reads from its buffers are constants.

    Raises:
        Exception: what the exporter raises.
    """
    table = standard.decompositions()
    with _called(model), OpenSizes():
        made = _exported(model, arguments, dynamic_shapes)
        if any(node.target in table for node in _nodes(made)):  # called in C++, where no mode sees it
            made = made.run_decompositions(table)
        return made


class Written(ExportedProgram):
    """A program that is decomposed only as far as it must be: that takes as long as exporting it, twice.

    It shares all it has with the program that it is made of.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.__dict__.update(program.__dict__)

    def run_decompositions(self, decomp_table: Any = None, *further: Any, **options: Any) -> ExportedProgram:
        """The program itself, where it has no operation of the table and none that writes to its arguments."""
        if decomp_table is not None and all(_stands(node, decomp_table) for node in _nodes(self)):
            return self
        made: ExportedProgram = super().run_decompositions(decomp_table, *further, **options)
        return made


def _nodes(program: ExportedProgram) -> Iterator[Node]:
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def _stands(node: Node, table: Container[Any]) -> bool:
    """Whether decomposing by a table leaves a node as it is."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if not isinstance(node.target, OpOverload):
        return not isinstance(node.target, OperatorBase)
    if node.target in table or node.target._schema.is_mutable:
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), "CompositeImplicitAutograd")
    return not composite or node.target in _WRITTEN or node.target in _preserved()


@cache
def _preserved() -> frozenset[Any]:
    """Composite operations that a table has to name: others are always decomposed."""
    return frozenset(torch.export.default_decompositions().keys())


def _exported(model: nn.Module, arguments: tuple[Any, ...], dynamic_shapes: Any) -> ExportedProgram:
    try:
        return torch.export.export(model, arguments, dynamic_shapes=dynamic_shapes)
    except Exception:
        with _numbers_as_constants(model) as found:
            if not found:
                raise
            return torch.export.export(model, arguments, dynamic_shapes=dynamic_shapes)


@contextmanager
def _called(model: nn.Module) -> Iterator[None]:
    """Have a GraphModule called as other modules are, for a while."""
    kind: Any = type(model)
    if issubclass(kind, GraphModule):
        model.__class__ = type(kind.__name__, (nn.Module,), {"forward": kind.forward})
    try:
        yield
    finally:
        model.__class__ = kind


@contextmanager
def _numbers_as_constants(model: nn.Module) -> Iterator[bool]:
    """Hold a network's few integers as plain attributes instead of buffers, for a while; whether it has any."""
    before = {module: dict(module._buffers) for module in model.modules()}
    moved = [
        (module, name, x)
        for module, buffers in before.items()
        for name, x in buffers.items()
        if x is not None and not x.is_floating_point() and not x.is_complex() and x.numel() <= _MOST
    ]
    try:
        for module, name, x in moved:
            del module._buffers[name]
            module.__dict__[name] = x
        yield bool(moved)
    finally:
        for module, name, _ in moved:
            module.__dict__.pop(name, None)
        for module, buffers in before.items():
            module._buffers.clear()
            module._buffers.update(buffers)
