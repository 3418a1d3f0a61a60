"""An exported program as an ONNX graph, decomposed and simplified no further than it must be.

`torch.onnx.export` alone takes minutes for a graph of a few thousand operations: it traces it anew to decompose it,
and looks for patterns in every pair of nodes.
"""

import operator
from collections.abc import Callable, Container
from functools import cache
from typing import Any

import torch
from torch._ops import OperatorBase, OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from hotswap.exporting import sizes
from hotswap.exporting.program import nodes, value

_aten = torch.ops.aten

# Composite operations that are always decomposed, and that torch.onnx can write as they are.
_WRITTEN = (
    _aten.reshape.default,
    _aten.flatten.using_ints,
    _aten.unflatten.int,
    _aten.upsample_nearest2d.vec,
    _aten.upsample_bilinear2d.vec,
    _aten.upsample_bicubic2d.vec,
)


# Composite operations whose result is always a new tensor: dropout, for one, gives back its argument.
_NEW = (
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.conv3d.default,
    _aten.conv_transpose2d.input,
    _aten.linear.default,
    _aten.batch_norm.default,
    _aten.group_norm.default,
    _aten.layer_norm.default,
    _aten.instance_norm.default,
    _aten.max_pool2d.default,
)


def model(program: ExportedProgram, arguments: tuple[Any, ...]) -> Any:
    """The ONNX model of a program, as a protocol buffer; the program is changed on the way.

    Raises:
        Exception: what the exporter raises.
    """
    for node in program.graph.nodes:
        _out_of_place(node)
    for node in [*program.graph.nodes]:
        if node.target in _OTHERS:
            _OTHERS[node.target](node)
    program.graph_module.recompile()
    exported = torch.onnx.export(
        _Written(program), arguments, dynamo=True, dynamic_shapes=None, verbose=False, optimize=False
    )
    assert exported is not None  # noqa: S101 (as dynamo=True)
    _simplify(exported.model)
    return exported.model_proto


class _Written(ExportedProgram):
    """A program that is decomposed only as far as it must be: each of two decompositions takes as long as an export.

    It shares all it has with the program that it is made of.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.__dict__.update(program.__dict__)

    def run_decompositions(self, decomp_table: Any = None, *further: Any, **options: Any) -> ExportedProgram:
        """Decompose, unless no operation is of the table or writes to its arguments."""
        if decomp_table is not None and all(_stands(node, decomp_table) for node in nodes(self)):
            return self
        decomposed: ExportedProgram = super().run_decompositions(decomp_table, *further, **options)
        return decomposed


def _stands(node: Node, table: Container[Any]) -> bool:
    """Whether decomposing by a table leaves a node as it is."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if not isinstance(node.target, OpOverload):
        return not isinstance(node.target, OperatorBase)
    if node.target in table or node.target._schema.is_mutable:
        return False
    return not _is_composite(node.target) or node.target in _WRITTEN or node.target in _preserved()


@cache
def _preserved() -> frozenset[Any]:
    """Composite operations that a table has to name: others are always decomposed."""
    return frozenset(torch.export.default_decompositions().keys())


# --- operations written otherwise ---------------------------------------------------------------------------


def _round_down(node: Node) -> None:
    """Write a // b of sizes as (a - a % b) // b: ONNX divides towards zero, and -(-a // b) is how one rounds up."""
    a, b = node.args
    if isinstance(a, Node):
        rest = _before(node, operator.mod, (a, b), value(a) % value(b))
        node.args = (_before(node, operator.sub, (a, rest), value(a) - value(a) % value(b)), b)


def _batch_norm(node: Node) -> None:
    """Write a batch norm with kept statistics as the operation for inference."""
    image, weight, bias, mean, variance, training, momentum, epsilon, _ = node.args
    if training or mean is None:
        return
    y = node.meta["val"]
    results = (y, y.new_empty(0), y.new_empty(0))
    given = (image, weight, bias, mean, variance, momentum, epsilon)
    normalised = _before(node, _aten._native_batch_norm_legit_no_training.default, given, results)
    node.target, node.args = operator.getitem, (normalised, 0)


def _conv_transpose2d(node: Node) -> None:
    names = ("image", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    given: dict[str, Any] = {"bias": None, "stride": [1], "padding": [0], "output_padding": [0], "groups": 1}
    given |= {"dilation": [1], **dict(zip(names, node.args, strict=False))}
    image, weight, bias, stride, padding, output_padding, groups, dilation = (given[name] for name in names)
    stride, padding, dilation, output_padding = (
        list(x) * (2 // len(x)) for x in (stride, padding, dilation, output_padding)
    )
    node.target = _aten.convolution.default
    node.args = (image, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _out_of_place(node: Node) -> None:
    """Write `relu_(x)` as `relu(x)` for the later readers of x, where no other tensor shares the memory of x."""
    operation, x = node.target, next(iter(node.args), None)
    if not isinstance(operation, OpOverload) or not operation._schema.is_mutable or not isinstance(x, Node):
        return
    packet = getattr(_aten, operation._opname.removesuffix("_"), None)
    if not operation._opname.endswith("_") or not hasattr(packet, operation._overloadname):
        return
    read = [y for argument in node.args for y in sizes.tensors(value(argument))]
    if any(y.dtype != read[0].dtype for y in read):  # what is written in place keeps its dtype
        return
    order = {other: place for place, other in enumerate(node.graph.nodes)}
    earlier = [user for user in x.users if order[user] < order[node]]
    if not _is_new(x) or not all(_is_new(user) for user in earlier):
        return
    node.target = getattr(packet, operation._overloadname)
    x.replace_all_uses_with(node, lambda user: order[user] > order[node])


def _is_new(node: Node) -> bool:
    """Whether the result of an operation shares no memory with its arguments."""
    operation = node.target
    if not isinstance(operation, OpOverload) or operation._schema.is_mutable:
        return False
    if _is_composite(operation) and operation not in _NEW:
        return False
    return all(x.alias_info is None for x in operation._schema.returns)


def _is_composite(operation: OpOverload) -> bool:
    known: bool = torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd")
    return known


_OTHERS: dict[Any, Callable[[Node], None]] = {
    operator.floordiv: _round_down,
    _aten.batch_norm.default: _batch_norm,
    _aten.conv_transpose2d.input: _conv_transpose2d,
}


def _before(node: Node, function: Callable[..., Any], args: tuple[Any, ...], given: Any) -> Node:
    with node.graph.inserting_before(node):
        inserted = node.graph.call_function(function, args)
    inserted.meta["val"] = given
    return inserted


# --- the ONNX graph -----------------------------------------------------------------------------------------


def _simplify(model: Any) -> None:
    """Fold constants, and merge repeated operations; runtimes look for patterns themselves."""
    import onnxscript.optimizer
    from onnx_ir.passes import common

    onnxscript.optimizer.inline(model)
    onnxscript.optimizer.fold_constants(model)
    passes: tuple[Any, ...] = (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
    for tidy in passes:
        tidy(model)
