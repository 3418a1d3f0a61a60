"""ONNX models with fewer nodes: what PyTorch's exporter leaves to runtimes."""

from typing import Any

import numpy as np

_MOST = 2**28  # elements of what is folded: weights, and what is made of them


def simplify(model: Any) -> None:
    """Fold constants whatever their size, norms behind convolutions, and slices of slices along other axes, in place.

    Args:
        model: an `onnx_ir.Model`.
    """
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common

    optimizer.fold_constants(model, input_size_limit=_MOST, output_size_limit=_MOST)
    rewriter.rewrite(model, [common.fuse_batchnorm_into_conv_rule])
    _fuse_slices(model.graph)
    CommonSubexpressionEliminationPass()(model)
    optimizer.remove_unused_nodes(model)


def _fuse_slices(graph: Any) -> None:
    import onnx_ir as ir

    for node in list(graph):
        inner = node.inputs[0].producer() if node.op_type == "Slice" else None
        if inner is None or inner.op_type != "Slice":
            continue
        bounds = [_bounds(each) for each in (inner, node)]
        if not all(bounds) or {*bounds[0][2]} & {*bounds[1][2]}:
            continue
        node.replace_input_with(0, inner.inputs[0])
        for place, (first, second) in enumerate(zip(*bounds, strict=True), 1):
            tensor = ir.tensor(np.array([*first, *second], dtype=np.int64), name=f"{node.outputs[0].name}_{place}")
            value = ir.Value(
                name=tensor.name,
                const_value=tensor,
                shape=ir.Shape([len(first) + len(second)]),
                type=ir.TensorType(tensor.dtype),
            )
            graph.register_initializer(value)
            node.replace_input_with(place, value)


def _bounds(node: Any) -> list[list[int]]:
    """Starts, ends, axes and steps of a slice; nothing where they are not all given as constants."""
    constants = [None if x is None else x.const_value for x in node.inputs[1:]]
    known = [[int(n) for n in x.numpy().ravel()] for x in constants if x is not None]
    return known if len(known) == 4 else []
