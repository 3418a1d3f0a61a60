"""CamVid: 367 frames to train on, 101 to choose on and to compare on; eleven classes, drawn by hand."""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.real.places import shared

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
VOID = 11
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
CROP = (256, 320)
SCALES = (0.75, 1.5)  # a crop is enlarged by a factor of this range


class Frame(NamedTuple):
    """One frame and its labels."""

    name: str
    image: Tensor  # uint8 [3, H, W]
    labels: Tensor  # uint8 [H, W]; VOID is not drawn


def frames(part: str) -> list[Frame]:
    """The frames of "train" or "val", by name."""
    return [_read(path) for path in sorted(shared(f"data/camvid/{part}").glob("*.webp"))]


def normalised(image: Tensor) -> Tensor:
    """What the networks are fed, [3, H, W], of an image in uint8."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    return (image / 255 - mean) / std


def crops(train: list[Frame], steps: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random crops, mirrored and rescaled at random, and their labels."""
    draw = random.Random(seed)  # noqa: S311 (no secret)
    for _ in range(steps):
        pairs = [_crop(draw.choice(train), draw) for _ in range(size)]
        yield torch.stack([image for image, _ in pairs]), torch.stack([labels for _, labels in pairs])


def _crop(frame: Frame, draw: random.Random) -> tuple[Tensor, Tensor]:
    factor = draw.uniform(*SCALES)
    height, width = (round(n / factor) for n in CROP)
    rows, columns = frame.labels.shape
    top, left = draw.randint(0, max(rows - height, 0)), draw.randint(0, max(columns - width, 0))
    window = (..., slice(top, top + height), slice(left, left + width))
    image = F.interpolate(normalised(frame.image[window])[None], CROP, mode="bilinear", antialias=True)[0]
    labels = F.interpolate(frame.labels[window][None, None], CROP, mode="nearest-exact")[0, 0].long()
    return (image.flip(-1), labels.flip(-1)) if draw.random() < 0.5 else (image, labels)


def encoded(frame: Frame) -> tuple[Tensor, Tensor]:
    """A frame's image as a lossy picture, a sixth of the lossless one's size, and its labels: bytes, [N] each."""
    picture, drawn = io.BytesIO(), io.BytesIO()
    Image.fromarray(frame.image.permute(1, 2, 0).numpy()).save(picture, "webp", quality=85)
    Image.fromarray(frame.labels.numpy()).save(drawn, "png")
    image, labels = (torch.frombuffer(bytearray(x.getvalue()), dtype=torch.uint8) for x in (picture, drawn))
    return image, labels


def decoded(name: str, image: Tensor, labels: Tensor) -> Frame:
    """The frame of what `encoded` made."""
    picture, drawn = (Image.open(io.BytesIO(x.numpy().tobytes())) for x in (image, labels))
    return _frame(name, picture, drawn)


def _read(path: Path) -> Frame:
    return _frame(path.stem, Image.open(path), Image.open(path.with_suffix(".png")))


def _frame(name: str, picture: Image.Image, drawn: Image.Image) -> Frame:
    image = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
    return Frame(name, image, torch.from_numpy(np.array(drawn)))
