"""Receptive fields, through the windows of convolutions, poolings and resizing."""

import math
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

Size = tuple[int, int]
_INTERPOLATION_REACH = {
    "nearest": 0,
    "bilinear": 1,
    "bicubic": 3,
}  # coarse pixels that an interpolation reads, less one


class _Field(NamedTuple):
    """The receptive field of one map, in pixels of the image, as (vertical, horizontal) pairs."""

    extent: tuple[float, float] = (1.0, 1.0)  # what one pixel of the map sees
    step: tuple[float, float] = (1.0, 1.0)  # from one pixel of the map to the next

    def seen_through(self, reach: tuple[float, float], factor: tuple[float, float]) -> "_Field":
        """After an operation whose pixels span `reach` + 1 pixels of this map and are `factor` of them apart."""
        extent = (self.extent[0] + reach[0] * self.step[0], self.extent[1] + reach[1] * self.step[1])
        return _Field(extent, (self.step[0] * factor[0], self.step[1] * factor[1]))


class ReceptiveFields(TorchDispatchMode):
    """While active, notes the receptive field of every tensor computed from the images.

    What sees a whole map at once (attention, global pooling, a mean over all pixels) is not counted: behind the first
    squeeze-excitation everything would see everything.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fields: Any = WeakTensorKeyDictionary()

    def start(self, image: Tensor) -> None:
        """Count from this tensor's pixels."""
        self._fields[image] = _Field()

    def of(self, x: Any) -> Size | None:
        """Height and width of the receptive field of a pixel of `x`; None where no image led to it."""
        field = self._fields.get(x) if isinstance(x, Tensor) else None
        return None if field is None else (math.ceil(field.extent[0]), math.ceil(field.extent[1]))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note its results' fields."""
        output = func(*args, **(kwargs or {}))
        known = [x for x in _tensors((args, kwargs)) if x in self._fields]
        if known:
            # Where a gate meets a map, or a skip connection an enlarged one, pixels are those of the larger.
            widest = max(known, key=lambda x: math.prod(x.shape[-2:]))
            extents = [self._fields[x].extent for x in known]
            joined = _Field((max(e[0] for e in extents), max(e[1] for e in extents)), self._fields[widest].step)
            for result in _tensors(output):
                self._fields[result] = _after(func.__name__.split(".")[0], joined, args, result)
        return output


def _after(operation: str, field: _Field, args: tuple[Any, ...], result: Tensor) -> _Field:
    if not args or not isinstance(args[0], Tensor) or args[0].dim() != 4 or result.dim() != 4:
        return field
    before, after = args[0].shape[2:], result.shape[2:]
    factor = (before[0] / after[0], before[1] / after[1])
    if operation in ("convolution", "pacconv2d"):
        if operation == "convolution":
            _, weight, _, stride, _, dilation, transposed = args[:7]
        else:
            (_, _, weight, _, stride, _, dilation), transposed = args[:7], False
        spans = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        steps = _pair(stride)
        if transposed:
            return field.seen_through((spans[0] // steps[0], spans[1] // steps[1]), (1 / steps[0], 1 / steps[1]))
        return field.seen_through((spans[0], spans[1]), steps)
    if operation in ("max_pool2d_with_indices", "avg_pool2d"):
        size = _pair(args[1])
        dilation = _pair(args[4]) if operation != "avg_pool2d" and len(args) > 4 else (1, 1)
        reach = (dilation[0] * (size[0] - 1), dilation[1] * (size[1] - 1))
        return field.seen_through(reach, _pair(args[2]) if len(args) > 2 and args[2] else size)
    if "adaptive" in operation:
        if tuple(after) == (1, 1):
            return field
        return field.seen_through((math.ceil(factor[0]) - 1, math.ceil(factor[1]) - 1), factor)
    if "upsample" in operation:
        beside = next((reach for name, reach in _INTERPOLATION_REACH.items() if name in operation), 0)
        return field.seen_through((beside, beside), factor)
    if operation == "pixel_unshuffle":
        return field.seen_through((factor[0] - 1, factor[1] - 1), factor)
    return field.seen_through((0, 0), factor) if operation == "pixel_shuffle" else field


def _pair(value: Any) -> Size:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return int(items[0]), int(items[-1])


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        x = list(x.values())
    return [t for item in x for t in _tensors(item)] if isinstance(x, list | tuple) else []
