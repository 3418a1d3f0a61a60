"""The samples of a report: images from a folder, or inputs from Python, one at a time."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.colours import Pixels, from_tensor
from hotswap.errors import HotswapError
from hotswap.files import image_files
from hotswap.network.batches import Batches, Pick, as_batches
from hotswap.network.dry_run import device_of
from hotswap.zoo import images


@dataclass(frozen=True)
class Sample:
    """One image, as the network's input and as a picture."""

    name: str
    arguments: tuple[Any, ...]
    picture: Pixels | None  # None where the network's first argument is no image


@dataclass(frozen=True)
class Samples:
    """All samples of a report, in order."""

    items: Iterator[Sample]  # read one by one
    count: int
    description: str  # where they are from, and how many were left out


def from_folder(network: nn.Module, folder: str | os.PathLike[str], form: images.Form, limit: int) -> Samples:
    """At most `limit` images of a folder, evenly spread over it."""
    files = image_files.find(folder, sys.maxsize)
    chosen = image_files.spread(files, limit)
    device = device_of(network)

    def read(file: Path) -> Sample:
        (batch,) = images.batches([file], form, 1)
        scale = [torch.tensor(values).view(-1, 1, 1) for values in (form.std, form.mean)]
        picture = from_tensor(batch[0].float() * scale[0] + scale[1], 0.0, 1.0)
        return Sample(file.name, (batch.to(device),), picture)

    of = "" if len(chosen) == len(files) else f" of {len(files)}, evenly spread"
    text = f"{_images(len(chosen))}{of}, from {os.fspath(folder)}"
    return Samples(map(read, chosen), len(chosen), text)


def from_batches(network: nn.Module, batches: Batches, limit: int, inputs: Pick | None = None) -> Samples:
    """The first `limit` images of some batches. A picture shows its smallest value black and its largest white."""
    single = chain.from_iterable(map(one_by_one, as_batches(network, batches, inputs)))
    first = [next(single)]  # as_batches refuses to give none
    for arguments in single:
        first.append(arguments)
        if len(first) > limit:
            break
    more = len(first) > limit
    chosen = first[:limit]
    items = (Sample(f"image {i}", x, stretched(x)) for i, x in enumerate(chosen, start=1))
    return Samples(items, len(chosen), _images(len(chosen)) + (", the first of those given" if more else ""))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def one_by_one(arguments: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Split a batch into single images: every tensor with the batch size of the first argument is split."""
    first = arguments[0] if arguments else None
    if not isinstance(first, Tensor) or first.dim() != 4:
        yield arguments
        return
    if not len(first):
        raise HotswapError("batches must hold images, got a batch of size 0")
    batched = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == len(first) for x in arguments]
    for index in range(len(first)):
        yield tuple(x[index : index + 1] if split else x for x, split in zip(arguments, batched, strict=True))


def stretched(arguments: tuple[Any, ...]) -> Pixels | None:
    """The first argument as a picture, its smallest value black and its largest white; None where it is no image."""
    first = arguments[0] if arguments else None
    if not isinstance(first, Tensor) or first.dim() != 4 or first.shape[1] not in (1, 3):
        return None
    image = first[0].float()
    finite = image[image.isfinite()]
    return from_tensor(image, float(finite.min()), float(finite.max())) if finite.numel() else None


Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # (items, how many, what is done with them)
