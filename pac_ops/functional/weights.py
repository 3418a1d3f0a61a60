"""The weights of coarse neighbours in an enlargement, guided and plain."""

import torch
from torch import Tensor

from pac_ops.arguments import check_devices, check_tensor
from pac_ops.backends import choose
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement, Located, finite_log, gathered
from pac_ops.geometry import Pair, size_of


def guided_weights(
    distance: Tensor, coarse: Pair, where: Enlargement, scale: float | Tensor, residual: bool
) -> Tensor:
    """See `resize_kernel2d`."""
    distance = distance.to(accumulate_dtype(distance.dtype))
    located = where.located(coarse, (distance.shape[4], distance.shape[5]), distance.device)
    if torch.compiler.is_exporting():
        kernel = _exported(distance.flatten(1, 3), located, scale, residual)
        apart: Tensor = kernel.unflatten(1, (1, where.footprint, where.footprint))
        return apart
    tents = [w.transpose(0, 1) for w in located.weights()]  # [n, H or W]
    down, across = (w.log().to(distance.dtype) for w in tents)
    half = -0.5 * scale_for(scale, distance) ** 2
    logits = distance * half + down.unsqueeze(1).unsqueeze(3) + across.unsqueeze(1)
    kernel = logits.flatten(2, 3).softmax(dim=2).view(distance.shape)
    if not residual or where.footprint == 2:
        return kernel
    smooth = _separable(*((w / w.sum(dim=0)).to(kernel.dtype) for w in tents))
    return kernel + (_plain(located, kernel) - smooth)


def _exported(distance: Tensor, located: Located, scale: float | Tensor, residual: bool) -> Tensor:
    """`guided_weights` with all neighbours along one axis, [B, n n, H, W], and no infinite logarithms."""
    tents = [w.transpose(0, 1) for w in located.weights()]  # [n, H or W]
    down, across = (finite_log(w).to(distance.dtype) for w in tents)
    logs = (down[:, None, :, None] + across[None, :, None, :]).flatten(0, 1)  # [n n, H, W]
    kernel = (distance * (-0.5 * scale_for(scale, distance) ** 2) + logs).softmax(dim=1)
    if residual and located.footprint > 2:
        smooth = _separable(*((w / w.sum(dim=0)).to(kernel.dtype) for w in tents))
        kernel = kernel + (_plain(located, kernel) - smooth).flatten(0, 1)
    return kernel


def exported_step(
    input: Tensor, guide: Tensor, coarse_guide: Tensor, where: Enlargement, scale: float | Tensor, residual: bool
) -> Tensor:
    """An enlargement in standard operations, which works out where pixels lie once."""
    located = where.located(size_of(coarse_guide), size_of(guide), guide.device)
    wide = accumulate_dtype(guide.dtype)
    near = located.indices()
    apart = guide.to(wide).unsqueeze(2) - gathered(coarse_guide.to(wide), near)
    weights = _exported(apart.square().sum(dim=1), located, scale, residual)
    wide = accumulate_dtype(input.dtype)
    return (gathered(input.to(wide), near) * weights.to(wide).unsqueeze(1)).sum(dim=2).to(input.dtype)


def enlarged_rows(
    input: Tensor,
    guide: Tensor,
    coarse_guide: Tensor,
    coarse: Pair,
    where: Enlargement,
    scale: float | Tensor,
    residual: bool,
) -> Tensor:
    """Some fine rows, or all, by the backend itself: nothing is recorded. `coarse` is the whole map's size."""
    backend, scale = choose.implementation(input), scale_for(scale, guide)
    of_guide = choose.implementation(guide)
    if hasattr(of_guide, "guided_resize2d") and accumulate_dtype(input.dtype) == accumulate_dtype(guide.dtype):
        smooth = residual and where.footprint > 2
        out: Tensor = of_guide.guided_resize2d(input, guide, coarse_guide, where, scale, smooth)
        return out
    kernel = guided_weights(of_guide.resize_distance2d(guide, coarse_guide, where), coarse, where, scale, residual)
    result: Tensor = backend.pacresize2d(input, kernel, where)
    return result


def plain_weights(coarse: Pair, fine: Pair, where: Enlargement, like: Tensor) -> Tensor:
    """Those of mode="bilinear", [n, n, H, W], of a tensor's device and dtype."""
    return _plain(where.located(coarse, fine, like.device), like)


def _plain(located: Located, like: Tensor) -> Tensor:
    return _separable(*(w.transpose(0, 1).to(like.dtype) for w in located.plain_weights()))


def _separable(down: Tensor, across: Tensor) -> Tensor:
    """[n, H] and [n, W] -> [n, n, H, W], their products."""
    return down[:, None, :, None] * across[None, :, None, :]


def scale_for(scale: float | Tensor, distance: Tensor) -> float | Tensor:
    """The scale of a guide as distances are multiplied by it.

    Raises:
        ValueError: where it is a tensor of several elements.
    """
    if not isinstance(scale, Tensor):
        return scale
    check_tensor("scale", scale)
    check_devices(distance.device, {"scale": scale}, "guide")
    if scale.numel() != 1:
        raise ValueError(f"scale must be a number or a tensor of one element, got {list(scale.shape)}")
    return scale.to(accumulate_dtype(distance.dtype)).reshape(())
