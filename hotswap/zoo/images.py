"""Images in a folder as batches for a network."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike
from hotswap.network.dry_run import default_inputs
from hotswap.zoo import providers

# The only formats opened, whatever a file's name is. For EPS, Pillow would run a program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_MODES = {1: "L", 3: "RGB"}  # Pillow's mode, by number of input channels
_MOST_PIXELS = 50_000_000  # of an image that is read at its own size, in float32


@dataclass(frozen=True)
class Form:
    """The form in which a network takes images."""

    shape: tuple[int, int, int]  # channels, height, width
    mean: tuple[float, ...]  # of images in 0..1; one number, or one for each channel
    std: tuple[float, ...]
    dtype: torch.dtype


def form_for(
    network: nn.Module,
    size: tuple[int | None, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Form:
    """The form of a network's images: as given, as the network states it, or 224 x 224 with ImageNet's statistics.

    Args:
        network: says its number of channels, and may state its size, mean and standard deviation.
        size: channels, height and width.
        mean: one number, or one for each channel.
        std: the same.
    """
    channels, height, width = default_inputs(network)[0].shape[1:]
    if size is not None:
        channels, height, width = size[0] or channels, size[1], size[2]
    usual_mean, usual_std = (
        values if len(values) == channels else (sum(values) / len(values),)  # of a network that takes grey images
        for values in providers.normalisation(network)
    )
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    return Form((channels, height, width), tuple(mean or usual_mean), tuple(std or usual_std), dtype)


def batches(files: Sequence[Path], form: Form, batch_size: int) -> Iterator[Tensor]:
    """Read images, resize them to one size, and normalise them: (image in 0..1 - mean) / std.

    Args:
        files: the images.
        form: their shape, grey with 1 channel and RGB with 3, and the rest.
        batch_size: images a batch; the last may have fewer.

    Yields:
        [B, C, H, W].

    Raises:
        HotswapError: where an image cannot be read (naming it), or mean and std do not fit the channels.
    """
    channels = form.shape[0]
    if channels not in _MODES:
        raise HotswapError(
            f"images have 1 or 3 channels, and the network takes {channels}; call the library from Python"
        )
    scale = [_per_channel(name, values, channels) for name, values in (("mean", form.mean), ("std", form.std))]
    if not bool((scale[1] > 0).all()):
        raise HotswapError(f"std must be greater than 0, got {list(form.std)}")
    for start in range(0, len(files), batch_size):
        batch = torch.stack([read(file, channels, form.shape[1:]) for file in files[start : start + batch_size]])
        yield ((batch - scale[0]) / scale[1]).to(form.dtype)


def _per_channel(name: str, values: Sequence[float], channels: int) -> Tensor:
    if len(values) not in (1, channels):
        raise HotswapError(f"{name} must be one number or {channels}, one for each channel, got {list(values)}")
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def read(file: Path, channels: int = 3, size: tuple[int, int] | None = None) -> Tensor:
    """One image, upright: [channels, H, W] in 0..1, of its own height and width or resized to `size`.

    Args:
        file: the image.
        channels: 1 (grey) or 3 (RGB).
        size: height and width.

    Raises:
        HotswapError: where it cannot be read, or has more than 50 million pixels and no `size` is given.
    """
    try:
        pixels = _pixels(file, channels, size)
    except HotswapError:
        raise
    except Exception as error:  # a damaged image can make a decoder raise anything
        raise HotswapError(f"cannot read image {str(file)!r} ({type(error).__name__}: {error})") from error
    return torch.from_numpy(pixels).float().div_(255).permute(2, 0, 1)


@contextmanager
def opened(file: PathLike) -> Iterator[Image.Image]:
    """An opened image file. Pillow's warnings about damaged tags are silenced: only the pixels matter.

    Raises whatever Pillow does, also of images that are suspiciously large.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        logger.setLevel(logging.CRITICAL)
        try:
            with Image.open(file, formats=_FORMATS) as image:
                yield image
        finally:
            logger.setLevel(level)


def _pixels(
    file: Path, channels: int, size: tuple[int, int] | None
) -> "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]":
    with opened(file) as image:
        if image.mode.startswith(("I", "F")):  # which convert() cuts off at 255
            raise HotswapError(f"image {str(file)!r} has more than 8 bits a channel; convert it to 8 bits")
        if size is None and image.width * image.height > _MOST_PIXELS:
            raise HotswapError(
                f"image {str(file)!r} has {image.width} x {image.height} pixels, and can have at most "
                f"{_MOST_PIXELS // 10**6} million; make it smaller"
            )
        ImageOps.exif_transpose(image, in_place=True)
        upright = image if image.mode == _MODES[channels] else image.convert(_MODES[channels])
        if size is not None:
            upright = upright.resize(size[::-1], Image.Resampling.BILINEAR)
        return np.array(upright).reshape(upright.height, upright.width, channels)
