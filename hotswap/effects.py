"""What a node of a graph does to its input, as far as taking a guide has to know."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from hotswap.guide import image_size, require_given, require_value, shared_guides

ACTIVATION_NAMES = {
    "celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "relu", "relu6",
    "rrelu", "selu", "sigmoid", "silu", "softplus", "swish", "tanh",
}  # fmt: skip
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
_NORM_FUNCTIONS = {F.batch_norm, F.instance_norm, F.group_norm, F.layer_norm}
# Layers that drop or pass on values between a norm and its residual sum; timm's and torchvision's by name.
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
_PASSING_NAMES = {"DropPath", "StochasticDepth"}
_SUMS = {operator.add, operator.iadd, torch.add}
_SUM_METHODS = {"add", "add_"}
# The same by name, without underscores, for who sees functions rather than nodes.
SUM_NAMES = {"add", "iadd", "radd"}
NORM_NAMES = {function.__name__ for function in _NORM_FUNCTIONS}

# Modules and functions that read their input and return new memory. All others are taken to overwrite it.
_READING_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.batchnorm._BatchNorm,
    nn.Linear,
    nn.GroupNorm,
    nn.LayerNorm,
)
_READING_FUNCTIONS: set[Any] = {
    operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul, torch.cat, torch.sigmoid,
    F.conv2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.batch_norm, getattr,
    image_size, shared_guides, require_value, require_given,
}  # fmt: skip
_READING_METHODS = {"add", "mean", "mul", "size", "dim"}
_IN_PLACE_OPERATORS: set[Any] = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def is_activation(node: Node, root: nn.Module) -> bool:
    """Whether a node applies an elementwise non-linearity."""
    if node.op == "call_module":
        return activates(root.get_submodule(str(node.target)))
    return _function_name(node).rstrip("_") in ACTIVATION_NAMES


def activates(module: nn.Module) -> bool:
    """Whether a module applies an elementwise non-linearity, be it after a norm."""
    # timm's norm layers may hold their activation as `act`.
    fused = getattr(module, "act", None) if isinstance(module, _NORMS) else None
    return _is_activation_module(module if fused is None else fused)


def leads_on(module: nn.Module) -> bool:
    """Whether a module can come between a guide and its activation: a norm, or one that passes values on."""
    return isinstance(module, (*_NORMS, *_PASSING)) or type(module).__name__ in _PASSING_NAMES


def after_activation(node: Node, root: nn.Module) -> Node:
    """The activation that follows a node through norms and residual sums, or the node itself if none does."""
    current = node
    while True:
        activated = [user for user in current.users if is_activation(user, root)]
        if activated:
            return activated[0]
        onward = [user for user in current.users if _leads_on(user, root)]
        if len(onward) != 1:
            return node
        current = onward[0]


def is_in_place(node: Node, root: nn.Module) -> bool:
    """Whether a node writes its result over its first input."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = _function_name(node)
    asked = node.kwargs.get("inplace", False) or any(argument is True for argument in node.args[1:])
    return node.target in _IN_PLACE_OPERATORS or name.endswith("_") or bool(asked)


def only_reads(node: Node, memory: Sequence[Node], root: nn.Module) -> bool:
    """Whether a node is known to leave `memory`, nodes that share storage, as it is and not to return it."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return isinstance(module, _READING_MODULES) or (is_activation(node, root) and not is_in_place(node, root))
    if node.target in _IN_PLACE_OPERATORS:
        return node.args[0] not in memory  # x += memory
    if node.op == "call_function":
        return node.target in _READING_FUNCTIONS or (is_activation(node, root) and not is_in_place(node, root))
    return node.op == "call_method" and node.target in _READING_METHODS


def _leads_on(node: Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return leads_on(root.get_submodule(str(node.target)))
    if node.op == "call_method":
        return node.target in _SUM_METHODS
    return node.op == "call_function" and (node.target in _NORM_FUNCTIONS or node.target in _SUMS)


def _is_activation_module(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__ == "torch.nn.modules.activation":
        return kind.__name__.lower() in {name.replace("_", "") for name in ACTIVATION_NAMES}
    # timm has its own classes for activations older PyTorch lacked.
    return kind.__module__.startswith("timm.layers.activations")


def _function_name(node: Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""
