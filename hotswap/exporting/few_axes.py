"""Exported programs without tensors of more than 5 axes, which some runtimes do not have.

K is [B, C, kh, kw, H, W] to those who call the operators, and a view of [B, C taps, H, W] in what is exported. What
is computed of such a view elementwise is computed of the tensor that it is a view of.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

_MOST = 5
_aten = torch.ops.aten
_VIEWS = {
    _aten.view.default,
    _aten.reshape.default,
    _aten._unsafe_view.default,
    _aten.unflatten.int,
    _aten.flatten.using_ints,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
}
_ELEMENTWISE = {
    _aten.mul.Tensor,
    _aten.add.Tensor,
    _aten.pow.Tensor_Scalar,
    _aten.exp.default,
    _aten.neg.default,
    _aten._to_copy.default,
}


def value(x: Any) -> Any:
    """The value of a node, in fake tensors and symbolic sizes; other arguments are returned as they are."""
    return x.meta["val"] if isinstance(x, Node) else x


def with_few_axes(module: GraphModule) -> None:
    """Rewrite a graph, in place, where views of many axes lie between others."""
    flat: dict[Node, Node] = {}  # by a node of many axes, one of the same elements in the same order
    for node in list(module.graph.nodes):
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if node.op != "call_function" or source is None or not isinstance(node.meta.get("val"), Tensor):
            continue
        if node.target in _VIEWS:
            base = flat.get(source, source)
            if _axes(node) > _MOST and _axes(base) <= _MOST:
                flat[node] = base
            elif source in flat and _alike(node, base):
                node.replace_all_uses_with(base)
        elif node.target in _ELEMENTWISE and source in flat:
            others = [_fitting(module, node, source, flat[source], x) for x in node.args[1:]]
            if None not in others:
                flat[node] = _before(module, node, node.target, (flat[source], *others), dict(node.kwargs))
    module.graph.eliminate_dead_code()
    module.recompile()


def _axes(node: Node) -> int:
    return int(node.meta["val"].dim())


def _fitting(module: GraphModule, node: Node, source: Node, base: Node, other: Any) -> Any:
    """The other operand for the tensor that a view is of; None where it does not broadcast there."""
    if not isinstance(other, Node) or other.meta["val"].numel() == 1:
        return other
    shape = other.meta["val"].shape
    kh, kw = source.meta["val"].shape[2:4]
    if _axes(base) == 4 and len(shape) == 4 and tuple(shape[2:]) == (1, 1) and (shape[0], shape[1]) == (kh, kw):
        return _before(module, node, _aten.view.default, (other, [-1, 1, 1]), {})  # factors of taps
    return None


def _alike(node: Node, base: Node) -> bool:
    """Whether a view of another has the shape of what that is a view of."""
    shapes = node.meta["val"].shape, base.meta["val"].shape
    return len(shapes[0]) == len(shapes[1]) and all(
        statically_known_true(n == m) for n, m in zip(*shapes, strict=True)
    )


def _before(module: GraphModule, node: Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
    with module.graph.inserting_before(node):
        inserted = module.graph.call_function(function, args, kwargs)
    inserted.meta["val"] = function(*(value(x) for x in args), **kwargs)
    return inserted
