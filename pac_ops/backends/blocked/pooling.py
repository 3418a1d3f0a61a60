"""Pooling, tap by tap over a block of rows."""

import torch
from torch import Tensor

from pac_ops.backends.blocked.rows import bands, crop, tap_views
from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Window, pad


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    wide = accumulate_dtype(input.dtype)
    kernel, padded = kernel.to(wide), pad(input.to(wide), window)
    ho, wo = kernel.shape[-2:]
    out = padded.new_zeros(*input.shape[:2], ho, wo)
    for n in range(input.shape[0]):
        for rows in bands(ho, 4 * input.shape[1] * wo):
            block = out[n, :, rows]
            for i, j, v_j in tap_views(padded[n], window, rows, wo):
                block.addcmul_(v_j, kernel[n, :, i, j, rows])
    return out.to(input.dtype)


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    wide = accumulate_dtype(input.dtype)
    k_ij, g_i, padded = kernel.to(wide), grad.to(wide), pad(input.to(wide), window)
    ho, wo = kernel.shape[-2:]
    grad_padded = torch.zeros_like(padded) if needs[0] else None
    grad_kernel = torch.empty_like(k_ij) if needs[1] else None
    for n in range(input.shape[0]):
        for rows in bands(ho, 4 * input.shape[1] * wo):
            g_block = g_i[n, :, rows]
            if grad_padded is not None:
                for i, j, to_v in tap_views(grad_padded[n], window, rows, wo):
                    to_v.addcmul_(g_block, k_ij[n, :, i, j, rows])
            if grad_kernel is not None:
                for i, j, v_j in tap_views(padded[n], window, rows, wo):
                    product = g_block * v_j
                    grad_kernel[n, :, i, j, rows] = product if kernel.shape[1] > 1 else product.sum(0, keepdim=True)
    return (
        None if grad_padded is None else crop(grad_padded, window).to(input.dtype),
        None if grad_kernel is None else grad_kernel.to(kernel.dtype),
    )
