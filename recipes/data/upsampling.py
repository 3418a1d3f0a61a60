"""Joint upsampling: from a fine map and its guide to a coarse map, by the protocols of the literature."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from hotswap.errors import HotswapError
from recipes import protocols
from recipes.data.files import PathLike
from recipes.data.nyu import NyuDepth
from recipes.data.nyu import Split as NyuSplit
from recipes.data.sintel import SintelFlow
from recipes.data.sintel import Split as SintelSplit

Item = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
LowResolution = Literal[
    "centre_pixel", "upper_left_centre_pixel", "antialiased_bicubic", "bilinear", "antialiased_bilinear"
]

CENTIMETRES = 100.0


class JointUpsampling(Dataset[Item]):
    """Items for networks that enlarge a map along a guide: ((low, guide), (target, unit)).

    low [C, h, w], guide [3, H, W] in 0..1, target [C, H, W] with H = factor h and W = factor w; rows and columns of
    the image that are left over are cut off. A step of 1 in low and target is `unit` centimetres, or pixels.

    Args:
        dataset: pairs of guide [3, H, W] and target [C, H, W].
        factor: how much smaller the coarse map is.
        low_resolution: how it is made. "centre_pixel" takes one pixel of every block, the one below and right of its
            centre; "upper_left_centre_pixel" the one above and left of it, so that with an odd factor both are the
            same; the others are resized so.
        min_max: move and scale both maps so that the coarse one is from 0 to 1.
        unit: of the data set's maps.

    Raises:
        HotswapError: where an argument is out of range; later, where the data set's maps are smaller than the factor.
    """

    def __init__(
        self,
        dataset: Dataset[tuple[Tensor, Tensor]],
        factor: int,
        low_resolution: LowResolution,
        *,
        min_max: bool = False,
        unit: float = 1.0,
    ) -> None:
        if factor < 2:
            raise HotswapError(f"factor must be at least 2, got {factor}")
        if low_resolution not in get_args(LowResolution):
            raise HotswapError(
                f"low_resolution must be one of {', '.join(get_args(LowResolution))}, got {low_resolution!r}"
            )
        self.dataset, self.factor, self.low_resolution = dataset, factor, low_resolution
        self.min_max, self.unit = min_max, unit

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch's map-style data sets have one, but do not say so

    def __getitem__(self, index: int) -> Item:
        guide, target = self.dataset[index]
        height, width = (size - size % self.factor for size in target.shape[1:])
        if not height or not width:
            raise HotswapError(f"factor must be at most {min(target.shape[1:])}, the map's size, got {self.factor}")
        guide, target = guide[:, :height, :width], target[:, :height, :width]
        low, unit = shrink(target, self.factor, self.low_resolution), torch.tensor(self.unit)
        if self.min_max:
            first, span = low.min(), low.max() - low.min()
            span = torch.where(span > 0, span, 1)  # a flat map becomes 0
            low, target, unit = (low - first) / span, (target - first) / span, unit * span
        return (low, guide.contiguous()), (target.contiguous(), unit)


def shrink(x: Tensor, factor: int, how: LowResolution) -> Tensor:
    """[C, H, W] -> [C, H / factor, W / factor]; see `JointUpsampling`."""
    if how in ("centre_pixel", "upper_left_centre_pixel"):
        first = factor // 2 if how == "centre_pixel" else (factor - 1) // 2
        return x[:, first::factor, first::factor].contiguous()
    size = (x.shape[1] // factor, x.shape[2] // factor)
    mode = "bicubic" if how == "antialiased_bicubic" else "bilinear"
    return F.interpolate(x[None], size=size, mode=mode, antialias=how.startswith("antialiased"))[0]


_OF_NYU: dict[str, LowResolution] = {
    protocols.CENTRE_PIXEL: "centre_pixel",
    protocols.PUBLISHED: "upper_left_centre_pixel",
    protocols.ANTIALIASED_BICUBIC: "antialiased_bicubic",
}


def nyu(
    root: PathLike,
    split: NyuSplit,
    factor: int = 4,
    crop: int | None = None,
    protocol: str = protocols.CENTRE_PIXEL,
) -> JointUpsampling:
    """Depth, in the range of the coarse map; its unit is in centimetres. See `NyuDepth`.

    Args:
        root: see `NyuDepth`.
        split: see there.
        factor: how much smaller the coarse map is.
        crop: see `NyuDepth`.
        protocol: how the coarse map is made. "published": one pixel of every block, the one above and left of its
            centre; "centre_pixel": the one below and right of it; "antialiased_bicubic": as newer papers do, an
            easier problem.

    Raises:
        HotswapError: where an argument is out of range.
    """
    _check(protocol, "nyu")
    return JointUpsampling(
        NyuDepth(root, split, crop=crop), factor, _OF_NYU[protocol], min_max=True, unit=CENTIMETRES
    )


def sintel(
    root: PathLike,
    split: SintelSplit,
    factor: int = 4,
    crop: int | None = None,
    protocol: str = protocols.BILINEAR,
) -> JointUpsampling:
    """Optical flow; its unit is in pixels. See `SintelFlow`.

    Args:
        root: see `SintelFlow`.
        split: see there.
        factor: how much smaller the coarse map is.
        crop: see `SintelFlow`.
        protocol: how the coarse map is made. "published": bilinear with antialiasing, and both maps in the range of
            the coarse one; "bilinear": without antialiasing, in pixels.

    Raises:
        HotswapError: where an argument is out of range.
    """
    _check(protocol, "sintel")
    published = protocol == protocols.PUBLISHED
    how: LowResolution = "antialiased_bilinear" if published else "bilinear"
    return JointUpsampling(SintelFlow(root, split, crop=crop), factor, how, min_max=published)


def _check(protocol: str, data_set: str) -> None:
    if (why := protocols.why_not(protocol, data_set)) is not None:
        raise HotswapError(why)
