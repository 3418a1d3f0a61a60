"""`torch.export.export`, also of GraphModules, and of networks that read numbers from their own buffers.

Networks imported from ONNX are both. They keep the sizes that they enlarge to as buffers, and `tolist` them when they
run: the exporter, which knows no values of buffers, gives up there; it does know those of other attributes. And a
GraphModule's graph is gone through without its hooks being called.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from hotswap.exporting.constants import with_constants
from hotswap.exporting.few_axes import with_few_axes
from hotswap.exporting.memory import storage, writes
from hotswap.exporting.open_sizes import OpenSizes
from pac_ops import standard, whole

_MOST = 64  # numbers in one buffer: sizes, not tables


def exported_program(
    model: nn.Module, arguments: tuple[Any, ...], dynamic_shapes: Any, *, keep: bool = False
) -> ExportedProgram:
    """The network as an exported program, without pac_ops. Numbers that it reads from its buffers are constants.

    Args:
        model: the network.
        arguments: of its example.
        dynamic_shapes: as `torch.export.export` takes them.
        keep: whether what is computed of open sizes stays an operator of `pac_ops.whole`, for `onnx_program`.

    Raises:
        Exception: what the exporter raises.
    """
    table = standard.decompositions()
    # Of open sizes, PyTorch's cache of fake results takes longer than what it saves.
    uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    with uncached, _called(model), OpenSizes(), whole.kept() if keep else nullcontext():
        exported = _exported(model, arguments, dynamic_shapes)
        if any(node.target in table and not _by_factor(node) for node in nodes(exported)):  # where no mode saw it
            exported = exported.run_decompositions(table)
        with_few_axes(exported.graph_module)
        _without_idle_casts(exported.graph_module)
        _without_idle_copies(exported.graph_module)
        with_constants(exported)
        return exported


def nodes(program: ExportedProgram) -> Iterator[Node]:
    """All nodes of a program, also in the branches of its conditions."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def inputs(program: ExportedProgram) -> list[Node]:
    """The placeholders of the network's own arguments."""
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _without_idle_casts(module: GraphModule) -> None:
    """Take casts to what a tensor is already out of a graph."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target.overloadpacket is torch.ops.aten.to and not {"copy", "memory_format"} & node.kwargs.keys():
            given, made = (x.meta["val"] for x in (node.args[0], node))
            flags = any(isinstance(x, bool | torch.memory_format) and x for x in node.args[1:])  # to copy, say
            if not flags and (given.dtype, given.device, given.layout) == (made.dtype, made.device, made.layout):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
    module.recompile()


def _without_idle_copies(module: GraphModule) -> None:
    """Take copies of what is not written to afterwards out of a graph: XNNPACK refuses them, and LiteRT `detach_`."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.detach_.default):
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
    ordered = list(module.graph.nodes)
    for place, node in enumerate(ordered):
        if node.target is torch.ops.aten.clone.default and not node.kwargs:
            pair = {storage(node), storage(node.args[0])}
            if not any(writes(later) and storage(later) in pair for later in ordered[place + 1 :]):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
    module.recompile()


def _by_factor(node: Node) -> bool:
    """Whether a node is an enlargement by a factor, which is exported as it is."""
    return node.target is torch.ops.aten.upsample_nearest2d.vec and node.args[1] is None


def _exported(model: nn.Module, arguments: tuple[Any, ...], dynamic_shapes: Any) -> ExportedProgram:
    try:
        return torch.export.export(model, arguments, dynamic_shapes=dynamic_shapes)
    except Exception:
        with _numbers_as_constants(model) as has_numbers:
            if not has_numbers:
                raise
            return torch.export.export(model, arguments, dynamic_shapes=dynamic_shapes)


@contextmanager
def _called(model: nn.Module) -> Iterator[None]:
    """Have a GraphModule called like other modules, for the time of the export."""
    kind: Any = type(model)
    if issubclass(kind, GraphModule):
        model.__class__ = type(kind.__name__, (nn.Module,), {"forward": kind.forward})
    try:
        yield
    finally:
        model.__class__ = kind


@contextmanager
def _numbers_as_constants(model: nn.Module) -> Iterator[bool]:
    """Hold small integer buffers as plain attributes for a while; yields whether there are any."""
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
