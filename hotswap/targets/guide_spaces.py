"""Colour spaces in which an image guides: its normalisation is undone first, so that distances have known units."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.choices import LAB, RGB
from hotswap.errors import HotswapError
from hotswap.zoo import image_stats
from pac_ops import srgb_to_lab
from pac_ops.dtypes import accumulate_dtype

SCALES = {LAB: 12.0, RGB: 8.0}  # what "auto" is: good on all networks of docs/evidence.md, and not sensitive
_LEAST = 1e-6  # of a range


@dataclass(frozen=True)
class GuideSpace:
    """What is made of an image before it guides: `name` is "lab" or "rgb", both of images in 0..1.

    An image as the network receives it, x, is x * std + mean in 0..1, for each of its 3 channels (or 1, of a grey
    image). "lab" is CIE L*a*b* divided by 100, in which equal distances look equally different.
    """

    name: str
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    bgr: bool = False  # the channels are blue, green, red

    def __post_init__(self) -> None:
        """Check the values a user or a file can get wrong."""
        if self.name not in SCALES:
            raise HotswapError(f"the name of a guide space must be one of {', '.join(SCALES)}, got {self.name!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3) or not all(isinstance(x, int | float) for x in values):
                raise HotswapError(f"{name} of a guide space must be 3 numbers (1 for grey images), got {values!r}")
        image_stats.ImageStats(tuple(self.mean), tuple(self.std))  # which checks their ranges

    def __call__(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] (or [B, 1, H, W]) as the network receives it -> the same in this space, float32 or wider."""
        if image.shape[1] != len(self.mean):
            raise HotswapError(
                f"guide space {self.name!r} is for images of {len(self.mean)} channels, got {image.shape[1]}; "
                "convert with space=None"
            )
        if self.name == LAB:
            return srgb_to_lab(image, self.mean, self.std, self.bgr)
        wide = image.to(accumulate_dtype(image.dtype))
        mean, std = (wide.new_tensor(x).view(1, -1, 1, 1) for x in (self.mean, self.std))
        plain = (wide * std + mean).clamp(0, 1)
        return plain.flip(1) if self.bgr else plain

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "mean": list(self.mean), "std": list(self.std), "bgr": self.bgr}

    def __str__(self) -> str:
        """Name and normalisation in a few words."""
        mean, std = (" ".join(f"{x:.3g}" for x in values) for values in (self.mean, self.std))
        return f"{self.name} of images with mean {mean} and deviation {std}{', BGR' if self.bgr else ''}"


Space = GuideSpace | Callable[[Tensor], Tensor]


def scale_of(space: Space | None) -> float | None:
    """The guide scale that is good in a space; None where its units are not known."""
    return SCALES[space.name] if isinstance(space, GuideSpace) else None


# --- how images are normalised ----------------------------------------------------------------------------------

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CAFFE = ((0.48109, 0.45752, 0.40787), (1 / 255,) * 3)  # ImageNet's mean taken off, in 0..255; as RGB


def declared(model: nn.Module, name: str) -> GuideSpace | None:
    """The space of a network that declares its images' mean and deviation (see `image_stats`), else None."""
    stats = image_stats.of(model)
    if stats.mean is None or stats.std is None or len(stats.mean) not in (1, 3):
        return None
    return GuideSpace(name, stats.mean, stats.std)


def seen(images: Iterable[Any], name: str) -> GuideSpace | None:
    """The space of images as the network receives them, by their ranges; None where they are no images."""
    given = [x.detach() for x in images if isinstance(x, Tensor) and x.dim() == 4 and x.numel()]
    channels = {x.shape[1] for x in given}
    if len(channels) != 1 or not channels <= {1, 3}:
        return None
    count = channels.pop()
    low = torch.stack([x.float().amin(dim=(0, 2, 3)) for x in given]).amin(dim=0).tolist()
    high = torch.stack([x.float().amax(dim=(0, 2, 3)) for x in given]).amax(dim=0).tolist()
    mean, std, bgr = _normalisation(low, high)
    return GuideSpace(name, mean[:count], std[:count], bgr)


def _normalisation(low: Sequence[float], high: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and deviation of the first of the usual normalisations that a range fits, else of the range itself."""
    least, most = min(low), max(high)
    if least >= 0:
        if most <= 1.001:
            return (0.0,) * 3, (1.0,) * 3, False
        if 2 < most <= 255.5:
            return (0.0,) * 3, (1 / 255,) * 3, False
    elif least >= -1.001 and most <= 1.001:
        return (0.5,) * 3, (0.5,) * 3, False
    for (mean, std), bgr in ((_IMAGENET, False), (tuple(x[::-1] for x in _CAFFE), True)):
        if len(low) == 3 and _fits(low, high, mean, std):
            return mean, std, bgr
    spread = max(most - least, _LEAST)
    return (-least / spread,) * 3, (1 / spread,) * 3, False


def _fits(low: Sequence[float], high: Sequence[float], mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether each channel stays within 0..1, and uses half of it at least."""
    ranges = [(a * s + m, b * s + m) for a, b, m, s in zip(low, high, mean, std, strict=True)]
    return all(a >= -0.02 and b <= 1.02 for a, b in ranges) and max(b - a for a, b in ranges) >= 0.5
