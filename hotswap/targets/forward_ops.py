"""Functions called by rewritten forwards and swapped layers: checks of arguments, and distances of guides."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.proxy import Proxy

import pac_ops
from hotswap.errors import HotswapError
from hotswap.targets.window import Sliding
from pac_ops.adapting import centred_distance2d
from pac_ops.area import area_average2d, has_size
from pac_ops.dtypes import accumulate_dtype
from pac_ops.subclasses import as_plain

Size = tuple[int, int, int]


def require_value(method: str, name: str, value: Any, traced: Any) -> None:
    """Refuse a call whose argument differs from the value the graph was traced with.

    Raises:
        HotswapError: where it differs.
    """
    if same(value, traced):
        return
    got, advice = repr(value), 'hotswap.register_concrete_args for another value, or with method="hooks"'
    if isinstance(value, Tensor):
        got, advice = "a tensor", f"example_inputs, or batches as calibrate_on, that have a tensor for {name}"
    raise HotswapError(
        f"{method} was rewritten for {name}={traced!r} alone, got {got}; call it with that, or revert the network "
        f"and convert it with {advice}"
    )


def require_given(method: str, name: str, value: Any) -> None:
    """Refuse a call without an argument that the graph was traced with.

    Raises:
        HotswapError: where it is no tensor.
    """
    if not isinstance(value, (Tensor, Proxy)):
        raise HotswapError(
            f"{method} was rewritten for a tensor as {name}, got {value!r}; call it with one, or hotswap.revert the "
            "network"
        )


def same(value: Any, default: Any) -> bool:
    """Whether an argument is its default, and no tensor."""
    return value is default or (not isinstance(value, (Tensor, Proxy)) and bool(value == default))


def require_input_only(target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call of a target with more than its input, which a swapped layer would drop.

    Raises:
        HotswapError: where there is more.
    """
    more = len(args) + len(kwargs) - 1
    if more:
        named = f" ({', '.join(kwargs)})" if kwargs else ""
        raise HotswapError(
            f"target {target!r} is called with {more} more than its input{named}, which a swapped layer does not "
            "take; leave this target out"
        )


def require_untraced(target: str, x: Any) -> None:
    """Refuse to run a target for a tracer of torch.fx: `create_feature_extractor`, fusing, quantising.

    Raises:
        HotswapError: where its input is a proxy.
    """
    if isinstance(x, Proxy):
        raise HotswapError(
            f"target {target!r} cannot be traced by torch.fx, as create_feature_extractor and tools that fuse or "
            "quantise do; hotswap.revert the network, trace that, and convert the GraphModule that comes of it"
        )


def image_size(target: str, x: Any) -> Size:
    """Batch, height and width of a target's input.

    Raises:
        HotswapError: where it is no [B, C, H, W] tensor.
    """
    require_untraced(target, x)
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise HotswapError(f"the input of target {target!r} must be a [B, C, H, W] tensor, got {describe(x)}")
    return x.shape[0], x.shape[2], x.shape[3]


def window_distance(
    names: tuple[str, ...],
    guides: tuple[Any, ...],
    size: Size,
    sliding: Sliding,
    resize: str,
    asymmetric: bool = False,
) -> Tensor:
    """||f_i - f_j||^2 over a target's window, of the guides resized to the target's input size.

    Several guides count as one with all their channels, so their squared distances are added. They are plain tensors,
    whatever class the guides are of: a target's output is of the class that its input and weights make it.

    Args:
        names: of the guides, for error messages.
        guides: each [B, G, h, w], of any G, h and w.
        size: batch, height and width of the target's input.
        sliding: how the target's window slides; what it puts around its input is put around the guides alike.
        resize: how a guide gets the height and width that go with it: "bilinear", "area" or "nearest".
        asymmetric: clip f_j - f_i below at 0 before it is squared.

    Returns:
        The distances, [B, 1, kh, kw, Ho, Wo].

    Raises:
        HotswapError: where a guide is no image-like tensor, or of another batch size.
    """
    total: Tensor | None = None
    for guide in fitted_guides(names, guides, size, sliding, resize):
        distance = distance_of(guide, sliding, asymmetric)
        total = distance if total is None else total + distance
    assert total is not None  # noqa: S101 (a plan names at least one)
    return total


def fitted_guides(
    names: tuple[str, ...], guides: tuple[Any, ...], size: Size, sliding: Sliding, resize: str
) -> list[Tensor]:
    """Guides at the size that goes with a target's input; see `window_distance`, also for what it raises."""
    batch = size[0]
    height, width = sliding.guide_size(size[1], size[2])
    fitted = []
    for name, guide in zip(names, guides, strict=True):
        _check_guide(name, guide)
        if guide.shape[0] != batch:
            raise HotswapError(
                f"guide {name!r} must have the target's batch size {batch}, got {guide.shape[0]}; "
                "take a guide from the same branch"
            )
        fitted.append(resize_to(as_plain(guide), height, width, resize))
    return fitted


def distance_of(guide: Tensor, sliding: Sliding, asymmetric: bool) -> Tensor:
    """||f_i - f_j||^2 over a target's window, of one guide that has its size."""
    padded = sliding.padded(guide)
    if asymmetric:
        return centred_distance2d(padded, sliding.on_guide(), None, asymmetric=True)
    return pac_ops.squared_distance2d(padded, *sliding.on_guide())


def projected(target: str, fitted: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Guides of one size, together, projected by [P, G, k, k]: [B, P, H, W], in float32 or wider.

    Raises:
        HotswapError: where they have another number of channels.
    """
    together = fitted[0] if len(fitted) == 1 else torch.cat([x.to(accumulate_dtype(x.dtype)) for x in fitted], dim=1)
    if together.shape[1] != weight.shape[1]:
        raise HotswapError(
            f"target {target!r} projects a guide of {weight.shape[1]} channels, got one of {together.shape[1]}"
        )
    wide = torch.promote_types(accumulate_dtype(together.dtype), weight.dtype)
    with torch.autocast(together.device.type, enabled=False):
        return F.conv2d(together.to(wide), weight.to(wide), padding=weight.shape[-1] // 2)


class Shared(NamedTuple):
    """Guides with their distances at one size, for several targets of one window."""

    guides: tuple[Any, ...]
    size: Size
    distance: Tensor


def shared_guides(
    names: tuple[str, ...],
    guides: tuple[Any, ...],
    size: Size,
    sliding: Sliding,
    resize: str,
    asymmetric: bool,
    previous: Shared | None,
) -> Shared:
    """Guides with their `window_distance`, or `previous`, those of the target before, where that has this size."""
    if previous is not None and previous.size == size:
        return previous
    return Shared(guides, size, window_distance(names, guides, size, sliding, resize, asymmetric))


def guide_copy(guide_name: str, guide: Any) -> Tensor:
    """A copy of a guide, which the network may overwrite before its last target has read it.

    Raises:
        HotswapError: where the guide is no image-like tensor.
    """
    if isinstance(guide, Proxy):  # as rewritten code is traced in its turn
        return guide.tracer.create_proxy("call_function", guide_copy, (guide_name, guide), {})  # type: ignore[return-value]
    _check_guide(guide_name, guide)
    copied: Tensor = guide.clone()
    return copied


def resize_to(x: Tensor, height: int, width: int, how: str) -> Tensor:
    """Resize [B, G, h, w] to exactly `height` x `width`; the same tensor where it has that size.

    What is made of half-precision values, of several at least, is float32.
    """
    if has_size(x, (height, width)):
        return x
    if how == "area":
        return area_average2d(x, (height, width))
    # What F.interpolate calls: calls of itself are counted where enlargements are guided by hooks.
    if how == "bilinear":
        wide = x.to(accumulate_dtype(x.dtype))
        resized: Tensor = torch.ops.aten.upsample_bilinear2d.vec(wide, (height, width), False, None)
    else:
        resized = torch.ops.aten.upsample_nearest2d.vec(x, (height, width), None)
    return resized


def _check_guide(guide_name: str, guide: Any) -> None:
    if not isinstance(guide, Tensor) or guide.dim() != 4:
        raise HotswapError(f"guide {guide_name!r} must give a [B, G, H, W] tensor, got {describe(guide)}")


def describe(x: Any) -> str:
    """A value in a few words, for messages."""
    return f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
