"""What PyTorch's operators do to the positions of a map: keep them apart, each at a place of its own, or mix them."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hotswap.targets.layout import (
    Layout,
    broadcast,
    counting,
    is_map,
    kinds,
    of_map,
    regrouped,
    resized,
    size_of,
)


class Mixes(Exception):  # noqa: N818 (no error: what an operator does)
    """Positions are mixed: an output position depends on several of the input's."""


class Unknown(Exception):  # noqa: N818
    """What an operator does to positions is not known."""


LayoutOf = Callable[[Tensor], Layout | None]  # None for tensors without positions that are followed
_Given = dict[str, Any]  # arguments by name


def follow(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], outputs: Sequence[Tensor], of: LayoutOf
) -> list[Layout | None]:
    """The layout of each output of an operator that keeps positions apart; None for statistics beside the output.

    Args:
        func: the operator, as a dispatch mode sees it.
        args: its positional arguments.
        kwargs: its other arguments.
        outputs: the tensors that it returned.
        of: gives the layout of an input.

    Raises:
        Mixes: where it mixes them.
        Unknown: where that cannot be told.
    """
    if func.namespace != "aten":
        raise Unknown
    rule = _rule(func, outputs)
    arguments = func._schema.arguments
    given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    given |= {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    layouts = [rule(given, output, of) for output in outputs]
    for layout, output in zip(layouts, outputs, strict=True):
        if layout is not None and regrouped(layout, output.shape) != layout:
            raise Unknown
    return layouts


def _rule(func: Any, outputs: Sequence[Tensor]) -> "_Rule":
    name = name_of(func)
    if name in _RULES:
        return _RULES[name]
    if _is_pointwise(func):
        return _pointwise
    if any(norm in name for norm in _NORMS):
        return _norm
    if any(word in name for word in _MIXING) or all(output.dim() == 0 for output in outputs):
        return _mixed
    if {argument.name for argument in func._schema.arguments} & {"dim", "dims"}:
        return _along
    raise Unknown


@cache
def _is_pointwise(func: Any) -> bool:
    """Whether PyTorch says so of it, or of what it does in place."""
    alike = getattr(getattr(torch.ops.aten, name_of(func), None), func._overloadname, func)
    return torch.Tag.pointwise in {*func.tags, *alike.tags} or name_of(func) in _POINTWISE


def name_of(func: Any) -> str:
    """The name of an operator, the same for its variants."""
    return str(func._schema.name).partition("::")[2].strip("_")


def is_constant(func: Any) -> bool:
    """Whether an operator's result has the form of its input, and nothing of its values."""
    return name_of(func) in _CONSTANT


def sums_products(func: Any) -> bool:
    """Whether an operator that keeps positions apart sums products: its further inputs are weights, and no maps."""
    return _RULES.get(name_of(func)) in (_convolution, _contraction, _linear)


def tensors(given: Any) -> list[Tensor]:
    """The tensors among the arguments of an operator, which holds them one by one or in lists."""
    values = given.values() if isinstance(given, dict) else given
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    return [value for value in flat if isinstance(value, Tensor)]


def _layouts(given: _Given, of: LayoutOf) -> list[Layout]:
    return [layout for x in tensors(given) if (layout := of(x)) is not None]


def _input(given: _Given) -> Tensor:
    for name in ("self", "input", "tensor"):
        if isinstance(given.get(name), Tensor):
            return given[name]  # type: ignore[no-any-return]
    raise Unknown


def _layout(given: _Given, of: LayoutOf) -> Layout:
    layout = of(_input(given))
    if layout is None:  # another of its arguments has the positions
        raise Unknown
    return layout


def _index(dimension: int, count: int) -> int:
    return dimension % count if count else 0


# --- place by place -------------------------------------------------------------------------------------------

# Beside those that PyTorch calls pointwise. `empty_like` is what a dry run has in place of a batch norm.
_POINTWISE = frozenset(
    {
        *("copy", "to_copy", "empty_like", "dropout", "native_dropout", "prelu", "prelu_kernel", "fill", "zero"),
        *("log_sigmoid", "log_sigmoid_forward", "lift_fresh", "detach", "alias", "masked_fill", "floor_divide"),
        *("bernoulli", "rrelu_with_noise", "contiguous", "channel_shuffle", "native_channel_shuffle", "where"),
        *("hardswish", "exponential", "normal", "uniform", "bucketize", "polar", "complex"),
    }
)
_CONSTANT = frozenset(
    {
        *("zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty"),
    }
)
# Norms in evaluation. Those over all positions only scale a map as a whole.
_NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm")


def _pointwise(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = broadcast(_layouts(given, of), output.shape)
    if layout is None:
        raise Mixes
    return layout


def _norm(given: _Given, output: Tensor, of: LayoutOf) -> Layout | None:
    layout = _layout(given, of)
    return layout if output.shape == _input(given).shape else None


# --- mixing ---------------------------------------------------------------------------------------------------

_MIXING = ("pool", "im2col", "col2im", "unfold", "grid_sampler", "fft", "nms", "attention", "roll", "cdist")


def _mixed(given: _Given, output: Tensor, of: LayoutOf) -> Layout | None:
    raise Mixes


def _convolution(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout, weight = _layout(given, of), given["weight"]
    strides = list(given.get("stride", [1])) * weight.dim()
    moving = [2 + index for index, size in enumerate(weight.shape[2:]) if size != 1 or strides[index] != 1]
    if kinds(layout, (1, *moving)):
        raise Mixes
    return (layout[0], counting(int(output.shape[1])), *layout[2:])


_LEFT, _RIGHT = ("mat1", "batch1", "self"), ("mat2", "batch2", "vec")


def _contraction(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    """Matrix products: what is summed over is the left one's last dimension and the right one's last but one."""
    left, right = (next(given[name] for name in names if name in given) for names in (_LEFT, _RIGHT))
    one, other = of(left), of(right)
    if one is not None and kinds(one, (left.dim() - 1,)):
        raise Mixes
    if other is not None and kinds(other, (max(right.dim() - 2, 0),)):
        raise Mixes
    aligned = []
    if one is not None:
        last = () if right.dim() == 1 else ((),)
        aligned.append((*one[:-1], *last))
    if other is not None and right.dim() > 1:
        aligned.append((*other[:-2], (), other[-1]))
    if not aligned:
        raise Unknown  # what is added has the positions
    layout = broadcast(aligned, output.shape)
    if layout is None:
        raise Mixes
    return layout


def _linear(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = _layout(given, of)
    if kinds(layout, (len(layout) - 1,)):
        raise Mixes
    return (*layout[:-1], counting(int(output.shape[-1])))


# --- rearranging ----------------------------------------------------------------------------------------------


def _reshape(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = regrouped(_layout(given, of), output.shape)
    if layout is None:
        raise Unknown
    return layout


def _permute(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = _layout(given, of)
    return tuple(layout[_index(index, len(layout))] for index in given["dims"])


def _transpose(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = list(_layout(given, of))
    one, other = (_index(given.get(name, at), len(layout)) for name, at in (("dim0", 0), ("dim1", 1)))
    layout[one], layout[other] = layout[other], layout[one]
    return tuple(layout)


def _slice(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = _layout(given, of)
    dim = _index(given["dim"], len(layout))
    if given["step"] != 1 and kinds(layout, (dim,)):
        raise Mixes
    start = given["start"] or 0
    cropped = resized(layout[dim], int(output.shape[dim]), start + size_of(layout[dim]) if start < 0 else start)
    if cropped is None:
        raise Unknown
    return (*layout[:dim], cropped, *layout[dim + 1 :])


def _split(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = _layout(given, of)
    dim = _index(given["dim"], len(layout))
    if kinds(layout, (dim,)):
        raise Unknown
    return (*layout[:dim], counting(int(output.shape[dim])), *layout[dim + 1 :])


def _pad(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout, before = _layout(given, of), dict(enumerate(given["pad" if "pad" in given else "padding"][::2], start=1))
    count = len(layout)
    padded = [
        resized(dimension, int(output.shape[index]), -before.get(count - index, 0))
        for index, dimension in enumerate(layout)
    ]
    if any(dimension is None for dimension in padded):
        raise Unknown
    return tuple(dimension for dimension in padded if dimension is not None)


def _select(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = _layout(given, of)
    chosen = _index(given.get("dim", 0), len(layout))
    if kinds(layout, (chosen,)):
        raise Mixes
    return (*layout[:chosen], *layout[chosen + 1 :])


def _cat(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layouts, dim = _layouts(given, of), _index(given.get("dim", 0), output.dim())
    if any(kinds(layout, (dim,)) for layout in layouts):
        raise Mixes
    return _pointwise({"tensors": [*tensors(given)]}, output, lambda x: _without(of(x), dim))


def _without(layout: Layout | None, dim: int) -> Layout | None:
    return None if layout is None else (*layout[:dim], (), *layout[dim + 1 :])


def _stack(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    dim = _index(given.get("dim", 0), output.dim())
    inserted = [(*layout[:dim], (), *layout[dim:]) for layout in _layouts(given, of)]
    layout = broadcast(inserted, output.shape)
    if layout is None:
        raise Mixes
    return layout


def _repeat(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = _layout(given, of)
    padded: Layout = (*((),) * (output.dim() - len(layout)), *layout)
    for dimension, times in zip(padded, given["repeats"], strict=True):
        if times != 1 and any(factor.kind for factor in dimension):
            raise Unknown
    same = [d if times == 1 else () for d, times in zip(padded, given["repeats"], strict=True)]
    result = broadcast([tuple(same)], output.shape)
    if result is None:
        raise Unknown
    return result


def _expand(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    result = broadcast([_layout(given, of)], output.shape)
    if result is None:
        raise Unknown
    return result


def _along(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    """Operators along some dimensions: softmax, sums, argmax, sorting, flips."""
    layouts = _layouts(given, of)
    dims = given.get("dim", given.get("dims"))
    for layout in layouts:
        listed = list(dims) if isinstance(dims, list | tuple) else [dims]
        chosen = {_index(dim, len(layout)) for dim in listed if dim is not None} or set(range(len(layout)))
        if kinds(layout, chosen):
            raise Mixes
        if output.dim() == len(layout):
            kept = tuple(() if index in chosen else dimension for index, dimension in enumerate(layout))
        elif output.dim() == len(layout) - len(chosen):
            kept = tuple(dimension for index, dimension in enumerate(layout) if index not in chosen)
        else:
            raise Unknown
        result = broadcast([kept], output.shape)
        if result is not None:
            return result
    raise Unknown


def _index_tensors(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    """`x[:, order]`, where positions stay that are not indexed, and `palette[classes]`."""
    indices = given["indices"]
    indexed = [at for at, index in enumerate(indices) if index is not None]
    layout, own = of(_input(given)), len(indexed) == 1 and of(indices[indexed[0]])
    if layout is None and own and indexed == [0]:
        return _looked_up(own, output)
    if layout is None or len(indexed) != 1 or indices[indexed[0]].dim() != 1:
        raise Unknown
    if kinds(layout, indexed):
        raise Mixes
    return _pointwise({"self": _input(given)}, output, lambda x: _without(of(x), indexed[0]))


def _embedding(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    layout = of(given["indices"])
    if layout is None:
        raise Unknown
    return _looked_up(layout, output)


def _looked_up(classes: Layout, output: Tensor) -> Layout:
    """The layout of what a table has for each class."""
    return (*classes, *(counting(int(size)) for size in output.shape[len(classes) :]))


def _pixel_shuffle(given: _Given, output: Tensor, of: LayoutOf) -> Layout:
    if not is_map(_layout(given, of)):
        raise Unknown
    return of_map(output.shape)


_Rule = Callable[[_Given, Tensor, LayoutOf], Layout | None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution"), _convolution),
    **dict.fromkeys(("convolution_overrideable", "slow_conv2d_forward", "thnn_conv2d"), _convolution),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", "mv", "addmm_activation"), _contraction),
    "linear": _linear,
    **dict.fromkeys(("view", "unsafe_view", "reshape", "reshape_alias", "squeeze", "unsqueeze"), _reshape),
    "view_copy": _reshape,
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "slice": _slice,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split),
    **dict.fromkeys(("constant_pad_nd", "pad", "reflection_pad2d", "replication_pad2d"), _pad),
    **dict.fromkeys(("select", "unbind"), _select),
    "cat": _cat,
    "stack": _stack,
    "repeat": _repeat,
    "expand": _expand,
    "index": _index_tensors,
    "embedding": _embedding,
    "pixel_shuffle": _pixel_shuffle,
}
