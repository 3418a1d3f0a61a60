"""Which nodes of a graph share memory, and which write to it."""

import operator

import torch
from torch.fx import Node


def writes(node: Node) -> bool:
    """Whether a node writes to what it is given."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def storage(node: Node) -> Node:
    """The node that made the memory in which a node's result is."""
    while node.target is operator.getitem or (
        isinstance(node.target, torch._ops.OpOverload) and any(x.alias_info for x in node.target._schema.returns)
    ):
        node = node.all_input_nodes[0]
    return node
