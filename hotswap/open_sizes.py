"""Calls in which torch.export takes the example's size for granted, made so that sizes stay open."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pac_ops import standard
from pac_ops.arguments import pair
from pac_ops.geometry import Pair, Window


class OpenSizes(TorchFunctionMode):
    """Makes calls others of the same results, while it is on.

    The operators of pac_ops become what `pac_ops.standard` writes, so that nothing is left to decompose; and pools in
    ceil mode and `torch.linspace`, of open sizes, others that leave them open: how many windows a pool in ceil mode
    has is a branch on the size, and torch.export keeps the example's.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, or what takes its place."""
        kwargs = kwargs or {}
        other = _OTHERS.get(func)
        if other is None:
            return func(*args, **kwargs)
        with self:  # casts in what it does
            made = other(*args, **kwargs)
        return func(*args, **kwargs) if made is None or made is NotImplemented else made


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    if return_indices or not ceil_mode:
        return None
    window = _window(kernel_size, stride, padding, dilation)
    padded = F.pad(input, _pads(input, window), value=-torch.inf)
    return F.max_pool2d(padded, window.kernel_size, window.stride, 0, window.dilation)


def _avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor | None:
    if divisor_override is not None or not ceil_mode:
        return None
    window = _window(kernel_size, stride, padding, 1)
    rows, columns = window.padding
    pads = _pads(input, window)
    counted = torch.ones_like(input[..., :1, :, :])
    if count_include_pad:
        counted = F.pad(counted, (columns, columns, rows, rows), value=1.0)
        outside = [n - own for n, own in zip(pads, (columns, columns, rows, rows), strict=True)]
    else:
        outside = list(pads)
    share, mean = (
        F.avg_pool2d(F.pad(x, around), window.kernel_size, window.stride)
        for x, around in ((counted, outside), (input, list(pads)))
    )
    return mean / share


def _linspace(start: Any, end: Any, steps: Any, *, dtype: torch.dtype | None = None, **further: Any) -> Any:
    if not isinstance(steps, torch.SymInt):
        return None
    last: Any = steps - 1
    place = torch.arange(steps, dtype=torch.float64, **further) / last
    line: Tensor = start + place * (end - start)
    return line.to(dtype or torch.get_default_dtype())


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """One operation or none, where exporters write what was asserted of the dtype and decompose what is left."""
    dtype = kwargs.get("dtype") if kwargs else args[0]
    if len(args) + len(kwargs) != 1 or not isinstance(dtype, torch.dtype):
        return None
    return _cast(x, dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.dtype == dtype:
        return x
    made: Tensor = torch.ops.aten._to_copy.default(x, dtype=dtype)
    return made


_OTHERS: dict[Any, Callable[..., Any]] = {
    **standard.decompositions(),
    Tensor.to: _to,
    Tensor.float: partial(_cast, dtype=torch.float32),
    Tensor.long: partial(_cast, dtype=torch.int64),
    torch.max_pool2d: _max_pool2d,
    F.max_pool2d: _max_pool2d,
    torch._C._nn.avg_pool2d: _avg_pool2d,
    torch.linspace: _linspace,
}


def _window(kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    size = pair("kernel_size", kernel_size, 1)
    step = size if stride in (None, (), []) else pair("stride", stride, 1)
    return Window(size, step, pair("padding", padding, 0), pair("dilation", dilation, 1))


def _pads(input: Tensor, window: Window) -> tuple[int, int, int, int]:
    """Left, right, top and bottom, as F.pad has them, after which the windows fill the image."""
    size: Pair = (input.shape[-2], input.shape[-1])
    (rows, columns), (py, px) = window.ceil_padding(*size), window.padding
    return px, px + columns, py, py + rows
