"""Derivatives of `centred_distance2d` that cannot be written with the operators. Plain torch, tap by tap."""

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
    sum g_ij 2 x_ij y_ij over the taps and channels that count.
    """
    wide = accumulate_dtype(guide.dtype)
    f, a = pad(guide.to(wide), window), pad(guide_vector.to(wide), window)
    c_i, a_i = centre.to(wide), centre_vector.to(wide)
    ho, wo = centre.shape[-2:]
    to_grad, to_centre = [], torch.zeros_like(c_i)
    to_guide: Tensor | None = None
    for (i, j, f_j), (_, _, a_j) in zip(*(taps(x, window, ho, wo) for x in (f, a)), strict=True):
        x, y = f_j - c_i, a_j - a_i
        if asymmetric:
            y = y * (x > 0)  # the derivative of max(x, 0)^2 / 2 is max(x, 0), and of that, 1 where x > 0
        to_grad.append((2 * x * y).sum(dim=1, keepdim=True))
        pull = 2 * grad[:, :, i, j] * y
        if to_guide is None:  # made from what is added to it, so that it is mapped over by torch.vmap if that is
            to_guide = pull.new_zeros(f.shape)
            views = taps(to_guide, window, ho, wo)
        next(views)[2].add_(pull)
        to_centre = to_centre - pull
    assert to_guide is not None  # noqa: S101 (for the type checker: a window has a tap)
    (py, px), (height, width) = window.padding, guide.shape[2:]
    grad_grad = torch.stack(to_grad, dim=2).unflatten(2, window.kernel_size)
    grad_guide = to_guide[:, :, py : py + height, px : px + width]
    return grad_grad.to(grad.dtype), to_centre.to(centre.dtype), grad_guide.to(guide.dtype)


def centred_tangent(
    centre: Tensor, guide: Tensor, centre_tangent: Tensor, guide_tangent: Tensor, window: Window, asymmetric: bool
) -> Tensor:
    """The derivative of `centred_distance2d(c, f)` along tangents of c and f: [B, 1, kh, kw, Ho, Wo]."""
    ones = centre.new_ones((), dtype=accumulate_dtype(guide.dtype)).expand(
        centre.shape[0], 1, *window.kernel_size, *centre.shape[-2:]
    )
    along, _, _ = centred_distance2d(ones, centre, guide, centre_tangent, guide_tangent, window, asymmetric)
    return along
