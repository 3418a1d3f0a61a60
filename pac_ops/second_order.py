"""The one second derivative that the operators themselves do not provide."""

import torch
from torch import Tensor

from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Window, pad, taps


def centred_distance2d(
    grad: Tensor,
    centre: Tensor,
    guide: Tensor,
    centre_vector: Tensor,
    guide_vector: Tensor,
    window: Window,
    asymmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of <a, centred_distance2d_backward(g, c, f)> with respect to g, c and f.

    With x_ij = f_j - c_i and y_ij = a_j - a_i (a_i for the centre, a_j for the guide) it is
    sum g_ij 2 x_ij y_ij over the taps and channels that count. Plain differentiable torch, tap by tap.
    """
    wide = accumulate_dtype(guide.dtype)
    f, a = pad(guide.to(wide), window), pad(guide_vector.to(wide), window)
    c_i, a_i = centre.to(wide), centre_vector.to(wide)
    ho, wo = centre.shape[-2:]
    to_grad, to_centre, to_guide = [], torch.zeros_like(c_i), torch.zeros_like(f)
    tap_pairs = zip(*(taps(x, window, ho, wo) for x in (f, a, to_guide)), strict=True)
    for (i, j, f_j), (_, _, a_j), (_, _, to_f) in tap_pairs:
        x, y = f_j - c_i, a_j - a_i
        if asymmetric:
            y = y * (x > 0)  # the derivative of max(x, 0)^2 / 2 is max(x, 0), and of that, 1 where x > 0
        to_grad.append((2 * x * y).sum(dim=1, keepdim=True))
        pull = 2 * grad[:, :, i, j] * y
        to_f += pull
        to_centre = to_centre - pull
    (py, px), (height, width) = window.padding, guide.shape[2:]
    grad_grad = torch.stack(to_grad, dim=2).unflatten(2, window.kernel_size)
    grad_guide = to_guide[:, :, py : py + height, px : px + width]
    return grad_grad.to(grad.dtype), to_centre.to(centre.dtype), grad_guide.to(guide.dtype)
