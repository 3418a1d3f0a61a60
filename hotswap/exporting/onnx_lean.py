"""ONNX models with fewer nodes: what PyTorch's exporter leaves to runtimes."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir

_MOST = 2**28  # elements of what is folded: weights, and what is made of them


def simplify(model: Any) -> None:
    """Fold in place: constants of any size, norms behind convolutions, slices, shapes of what is gathered.

    Args:
        model: an `onnx_ir.Model`.
    """
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common

    optimizer.fold_constants(model, input_size_limit=_MOST, output_size_limit=_MOST)
    rewriter.rewrite(model, [common.fuse_batchnorm_into_conv_rule, _gathered_in_shape()])
    _fuse_slices(model.graph)
    _split_in_two(model.graph)
    CommonSubexpressionEliminationPass()(model)
    optimizer.remove_unused_nodes(model)


def _gathered_in_shape() -> Any:
    """The rule that what is gathered by a row of indices and reshaped is gathered by indices of that shape."""
    from onnxscript.rewriter.pattern import RewriteRule

    def pattern(op: Any, x: Any, row: Any, shape: Any) -> Any:
        return op.Reshape(op.Gather(x, row, _outputs=["gathered"]), shape)

    def made(op: Any, x: Any, row: Any, shape: Any, gathered: Any) -> Any:
        axis, inside = _split(x, row, shape, gathered)
        indices = ir.tensor(row.const_value.numpy().reshape(inside), name=f"{gathered.name}_indices")
        return op.Gather(x, op.initializer(indices), axis=axis)

    def is_split(_: Any, **found: Any) -> bool:
        return bool(_split(**found)[1])

    return RewriteRule(pattern, made, is_split)


def _split(x: Any, row: Any, shape: Any, gathered: Any) -> tuple[int, list[int]]:
    """The axis gathered along, and what a shape makes of it; nothing where it changes the other axes too."""
    if row.const_value is None or shape.const_value is None or x.shape is None:
        return 0, []
    axis = gathered.producer().attributes.get_int("axis", 0)
    others, sizes = list(x.shape), shape.const_value.numpy().tolist()
    length = len(sizes) - len(others) + 1
    inside = sizes[axis : axis + length]
    del others[axis], sizes[axis : axis + length]
    same = all(size in (other, -1) for size, other in zip(sizes, others, strict=True))
    return axis, inside if length > 0 and same and [math.prod(inside)] == list(row.shape) else []


def _fuse_slices(graph: Any) -> None:
    for node in list(graph):
        inner = node.inputs[0].producer() if node.op_type == "Slice" else None
        if inner is None or inner.op_type != "Slice":
            continue
        bounds = [_bounds(each) for each in (inner, node)]
        if not all(bounds) or {*bounds[0][2]} & {*bounds[1][2]}:
            continue
        node.replace_input_with(0, inner.inputs[0])
        for place, (first, second) in enumerate(zip(*bounds, strict=True), 1):
            value = _whole_numbers(graph, [*first, *second], f"{node.outputs[0].name}_{place}")
            node.replace_input_with(place, value)


def _split_in_two(graph: Any) -> None:
    """Two slices that part an axis, which PyTorch's exporter cannot write as one node."""
    for node in list(graph):
        if (first := _only_slice(node)) is None:
            continue
        (start, end, axis), whole = first, node.inputs[0]
        length = None if whole.shape is None else whole.shape[axis]
        if start != 0 or not isinstance(length, int):
            continue
        rest = next((use.node for use in whole.uses() if _only_slice(use.node) == (end, length, axis)), None)
        if rest is not None:
            sizes = _whole_numbers(graph, [end, length - end], f"{node.outputs[0].name}_sizes")
            split = ir.node("Split", [whole, sizes], {"axis": axis}, num_outputs=2)
            graph.insert_before(node, split)
            ir.convenience.replace_all_uses_with([*node.outputs, *rest.outputs], split.outputs)


def _only_slice(node: Any) -> tuple[int, int, int] | None:
    """Start, end and axis of a slice of one axis, in steps of 1; None of other nodes."""
    bounds = _bounds(node) if node.op_type == "Slice" else []
    if [len(x) for x in bounds] != [1] * 4 or bounds[3] != [1]:
        return None
    (start,), (end,), (axis,), _ = bounds
    return start, end, axis


def _whole_numbers(graph: Any, numbers: list[int], name: str) -> Any:
    """A constant of a graph."""
    tensor = ir.tensor(np.array(numbers, dtype=np.int64), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape([len(numbers)]), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def _bounds(node: Any) -> list[list[int]]:
    """Starts, ends, axes and steps of a slice; nothing where they are not all given as constants."""
    constants = [None if x is None else x.const_value for x in node.inputs[1:]]
    known = [[int(n) for n in x.numpy().ravel()] for x in constants if x is not None]
    return known if len(known) == 4 else []
