"""The oracle: every operator in plain, obvious, differentiable PyTorch.

Written from the equations, to be read; slow and hungry (it stores all k*k taps of everything). Every
other backend is held against it in float64, and it serves any device or dtype that nothing else does.
No fast path imports this module.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Window


def taps(x: Tensor, window: Window) -> Tensor:
    """What each tap of each window sees, zero outside the image: [B, C, H, W] -> [B, C, kh, kw, Ho, Wo]."""
    (kh, kw), (sy, sx), (py, px), (dy, dx) = window
    ho, wo = window.output_size(x.shape[2], x.shape[3])
    padded = F.pad(x, (px, px, py, py))
    rows = [
        torch.stack(
            [
                padded[:, :, i * dy : i * dy + (ho - 1) * sy + 1 : sy, j * dx : j * dx + (wo - 1) * sx + 1 : sx]
                for j in range(kw)
            ],
            dim=2,
        )
        for i in range(kh)
    ]
    return torch.stack(rows, dim=2)


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """||f_i - f_j||^2 between the window's centre and each tap: [B, G, H, W] -> [B, 1, kh, kw, Ho, Wo]."""
    f_j = taps(guide.to(accumulate_dtype(guide.dtype)), window)
    kh, kw = window.kernel_size
    f_i = f_j[:, :, kh // 2, kw // 2, None, None]
    return (f_i - f_j).square().sum(dim=1, keepdim=True)


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """Gradient of `squared_distance2d` with respect to the guide: [B, G, H, W]."""
    f_j = taps(guide.to(accumulate_dtype(guide.dtype)), window)
    kh, kw = window.kernel_size
    f_i = f_j[:, :, kh // 2, kw // 2, None, None]
    pull = 2 * grad * (f_i - f_j)  # d/df_i of each tap's distance; d/df_j is its negative
    per_tap = -pull
    per_tap[:, :, kh // 2, kw // 2] += pull.sum(dim=(2, 3))
    return _scatter(per_tap, window, guide.shape[2], guide.shape[3]).to(guide.dtype)


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """v'_i = sum_j K_ij W[p_i - p_j] v_j + b: [B, C, H, W] -> [B, O, Ho, Wo]."""
    wide = accumulate_dtype(input.dtype)
    adapted = taps(input.to(wide), window) * kernel.to(wide)  # [B, C, kh, kw, Ho, Wo]
    adapted = adapted.unflatten(1, (groups, -1))  # [B, g, C/g, kh, kw, Ho, Wo]
    filters = weight.to(wide).unflatten(0, (groups, -1))  # [g, O/g, C/g, kh, kw]
    out = torch.einsum("bgcijyx,gocij->bgoyx", adapted, filters).flatten(1, 2)
    if bias is not None:
        out = out + bias.to(wide)[:, None, None]
    return out.to(input.dtype)


def pacconv2d_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `pacconv2d` with respect to input, kernel and weight; None where `needs` is False."""
    wide = accumulate_dtype(input.dtype)
    v_j = taps(input.to(wide), window)  # [B, C, kh, kw, Ho, Wo]
    k_ij = kernel.to(wide)
    g_i = grad.to(wide).unflatten(1, (groups, -1))  # [B, g, O/g, Ho, Wo]
    filters = weight.to(wide).unflatten(0, (groups, -1))
    grad_input = grad_kernel = grad_weight = None
    if needs[0] or needs[1]:
        product = torch.einsum("bgoyx,gocij->bgcijyx", g_i, filters).flatten(1, 2)  # dL/d(K v), per tap
        if needs[0]:
            grad_input = _scatter(product * k_ij, window, input.shape[2], input.shape[3]).to(input.dtype)
        if needs[1]:
            grad_kernel = (product * v_j).sum(dim=1, keepdim=True).to(kernel.dtype)
    if needs[2]:
        adapted = (v_j * k_ij).unflatten(1, (groups, -1))
        grad_weight = torch.einsum("bgoyx,bgcijyx->gocij", g_i, adapted).flatten(0, 1).to(weight.dtype)
    return grad_input, grad_kernel, grad_weight


def _scatter(per_tap: Tensor, window: Window, height: int, width: int) -> Tensor:
    """Add what each tap holds to the pixel it came from, the transpose of `taps`: -> [B, C, H, W]."""
    (kh, kw), (sy, sx), (py, px), (dy, dx) = window
    b, c, _, _, ho, wo = per_tap.shape
    padded = per_tap.new_zeros(b, c, height + 2 * py, width + 2 * px)
    for i in range(kh):
        for j in range(kw):
            y, x = i * dy, j * dx
            padded[:, :, y : y + (ho - 1) * sy + 1 : sy, x : x + (wo - 1) * sx + 1 : sx] += per_tap[:, :, i, j]
    return padded[:, :, py : py + height, px : px + width].contiguous()
