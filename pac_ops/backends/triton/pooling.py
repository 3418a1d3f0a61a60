"""Pooling: the gather whose weights are all ones and whose groups are single channels."""

from torch import Tensor

from pac_ops.backends.triton.gather import gather
from pac_ops.backends.triton.walk import sliding
from pac_ops.geometry import Window


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    b, c = input.shape[:2]
    size = (b, c, kernel.shape[4], kernel.shape[5])
    out, _ = gather(input, kernel, None, None, size, sliding(window), c, dtype=input.dtype)
    assert out is not None  # noqa: S101 (for the type checker)
    return out


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    if not any(needs):
        return None, None
    b, c, height, width = input.shape
    factor = input if needs[1] else None
    grad_input, grad_kernel = gather(
        grad,
        kernel,
        None,
        None,
        (b, c, height, width),
        sliding(window).back,
        c,
        at_source=True,
        factor=factor,
        output=needs[0],
        dtype=input.dtype,
    )
    return grad_input, None if grad_kernel is None else grad_kernel.to(kernel.dtype)
