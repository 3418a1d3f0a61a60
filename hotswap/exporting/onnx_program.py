"""An exported program as an ONNX model."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from hotswap.exporting.few_axes import value
from hotswap.exporting.onnx_lean import simplify


def model(program: ExportedProgram, arguments: tuple[Any, ...]) -> Any:
    """The ONNX model of a program, as a protocol buffer; the program is changed on the way.

    Raises:
        Exception: what the exporter raises.
    """
    from hotswap.exporting.onnx_operators import translations  # needs onnxscript

    for node in program.graph.find_nodes(op="call_function", target=operator.floordiv):
        if not statically_known_true(value(node.args[0]) >= 0):
            _round_down(node)
    program.graph_module.recompile()
    exported = torch.onnx.export(
        program,
        arguments,
        dynamo=True,
        dynamic_shapes=None,
        verbose=False,
        optimize=True,
        custom_translation_table=translations(),
    )
    assert exported is not None  # noqa: S101 (as dynamo=True)
    simplify(exported.model)
    return exported.model_proto


def _round_down(node: Node) -> None:
    """Write a // b of sizes as (a - a % b) // b: ONNX divides towards zero, and -(-a // b) is how one rounds up."""
    a, b = node.args
    if isinstance(a, Node):
        rest = _before(node, operator.mod, (a, b), value(a) % value(b))
        node.args = (_before(node, operator.sub, (a, rest), value(a) - value(a) % value(b)), b)


def _before(node: Node, function: Callable[..., Any], args: tuple[Any, ...], given: Any) -> Node:
    with node.graph.inserting_before(node):
        inserted = node.graph.call_function(function, args)
    inserted.meta["val"] = given
    return inserted
