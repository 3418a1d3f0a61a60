"""Calls for which torch.export would assume the example's size, rewritten so that sizes stay open."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pac_ops import standard
from pac_ops.arguments import pair
from pac_ops.geometry import Pair, Window, any_open


class OpenSizes(TorchFunctionMode):
    """While active, replaces calls by others with the same results.

    The operators of pac_ops become what `pac_ops.standard` writes, so that nothing is left to decompose; and pools in
    ceil mode and `torch.linspace`, of open sizes, others that leave them open: how many windows a pool in ceil mode
    has is a branch on the size, and torch.export keeps the example's. So do pools in ceil mode, whatever their
    sizes, where the shape that ONNX infers has a window more than PyTorch; and average pools by another divisor.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function or its replacement."""
        kwargs = kwargs or {}
        other = _OTHERS.get(func)
        if other is None:
            return func(*args, **kwargs)
        with self:  # casts in what it does
            result = other(*args, **kwargs)
        return func(*args, **kwargs) if result is None or result is NotImplemented else result


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    if return_indices or not ceil_mode or not input.is_floating_point():  # -inf is no whole number
        return None
    window = _window(kernel_size, stride, padding, dilation)
    if _is_counted_alike(input, window):
        return None
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
    window = _window(kernel_size, stride, padding, 1)
    rows, columns = window.padding
    around = (columns, columns, rows, rows)
    if divisor_override is not None:  # torch.onnx leaves it out
        padded, (kh, kw) = F.pad(input, _pads(input, window) if ceil_mode else around), window.kernel_size
        return F.avg_pool2d(padded, (kh, kw), window.stride) * (kh * kw / divisor_override)
    if not ceil_mode or _is_counted_alike(input, window):
        return None
    pads = _pads(input, window)
    counted = torch.ones_like(input[..., :1, :, :])
    if count_include_pad:
        counted = F.pad(counted, around, value=1.0)
        outside = [n - inside for n, inside in zip(pads, around, strict=True)]
    else:
        outside = list(pads)
    share, mean = (
        F.avg_pool2d(F.pad(x, widths), window.kernel_size, window.stride)
        for x, widths in ((counted, outside), (input, list(pads)))
    )
    return mean / share


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    wanted = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    sizes = [n if m is None else m for n, m in zip(input.shape[-2:], wanted, strict=True)]
    pooled: Tensor = _STANDARD[torch.ops.aten.adaptive_avg_pool2d.default](input, sizes)
    return pooled


def _interpolate(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **__: Any
) -> Any:
    if mode != "nearest" or size is None or scale_factor is not None or input.dim() != 4:
        return None
    wanted = size if isinstance(size, Sequence) else (size, size)
    return _STANDARD[torch.ops.aten.upsample_nearest2d.vec](input, wanted, None) if len(wanted) == 2 else None


def _linspace(start: Any, end: Any, steps: Any, *, dtype: torch.dtype | None = None, **further: Any) -> Any:
    if not isinstance(steps, torch.SymInt):
        return None
    last: Any = steps - 1
    place = torch.arange(steps, dtype=torch.float64, **further) / last
    line: Tensor = start + place * (end - start)
    return line.to(dtype or torch.get_default_dtype())


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """`Tensor.to` as one operation or none: exporters assert the dtype, and decompose the rest.

    None where it is asked for more than a dtype.
    """
    given = (*args, *kwargs.values())
    if len(given) != 1 or not isinstance(given[0], torch.dtype):
        return None
    if x.dtype == given[0]:
        return x
    converted: Tensor = torch.ops.aten._to_copy.default(x, dtype=given[0])
    return converted


_STANDARD = standard.decompositions()
_OTHERS: dict[Any, Callable[..., Any]] = {
    **_STANDARD,
    Tensor.to: _to,
    Tensor.float: partial(_to, dtype=torch.float32),
    Tensor.long: partial(_to, dtype=torch.int64),
    torch.max_pool2d: _max_pool2d,
    F.max_pool2d: _max_pool2d,
    torch._C._nn.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.interpolate: _interpolate,
    torch.linspace: _linspace,
}


def _is_counted_alike(image: Tensor, window: Window) -> bool:
    """Whether ONNX has as many windows in ceil mode as PyTorch, which leaves out one in the padding alone.

    Not known of open sizes.
    """
    size: Pair = (image.shape[-2], image.shape[-1])
    if any_open(*size):
        return False
    sides = zip(size, window.ceil_padding(*size), *window, strict=True)
    spare = ((n + 2 * p - d * (k - 1) - 1, extra, s) for n, extra, k, s, p, d in sides)
    return all((rest + extra) // s == -(-rest // s) for rest, extra, s in spare)


def _window(kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    size = pair("kernel_size", kernel_size, 1)
    step = size if stride in (None, (), []) else pair("stride", stride, 1)
    return Window(size, step, pair("padding", padding, 0), pair("dilation", dilation, 1))


def _pads(input: Tensor, window: Window) -> tuple[int, int, int, int]:
    """Left, right, top and bottom, as F.pad has them, after which the windows fill the image."""
    size: Pair = (input.shape[-2], input.shape[-1])
    (rows, columns), (py, px) = window.ceil_padding(*size), window.padding
    return px, px + columns, py, py + rows
