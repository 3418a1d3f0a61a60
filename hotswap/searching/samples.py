"""Images with their labels, one at a time: from folders, or from batches of Python."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hotswap.colours import from_tensor
from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike
from hotswap.network.batches import Batches, Pick, as_batches
from hotswap.network.dry_run import device_of
from hotswap.reporting.samples import Sample, one_by_one, stretched
from hotswap.searching.labels import Reader, reader_for
from hotswap.searching.ledger import bytes_of
from hotswap.searching.pairs import Pair, find
from hotswap.zoo import image_stats, images
from hotswap.zoo.image_stats import ImageStats
from hotswap.zoo.images import Form

Truth = Callable[[Any], Any]  # the label of a batch
_STEP, _LONGEST = 32, 1024  # of images at their own size: sides are multiples of this; and the longer side at most


@dataclass(frozen=True)
class Labelled:
    """An image and its label."""

    sample: Sample
    truth: Any  # None where there is none


@dataclass(frozen=True)
class About:
    """What holds of all images and labels of a search."""

    description: str  # where they are from, in words
    labelled: bool
    masks: bool  # labels are of one class
    numbers: bool  # labels are depth or flow
    form: tuple[Form, bool] | None = None  # of images in files, and whether these keep about their own size
    notes: tuple[str, ...] = ()

    @property
    def stats(self) -> ImageStats:
        """How images in files were normalised."""
        if self.form is None:
            return ImageStats()
        form, _ = self.form
        mean, std = (values * (form.shape[0] // len(values)) for values in (form.mean, form.std))
        return ImageStats(mean, std)


class Source(Protocol):
    """Images with their labels, in order; each can be read again."""

    about: About

    def __len__(self) -> int: ...

    def read(self, index: int) -> Labelled:
        """One of them."""
        ...

    def name(self, index: int) -> str:
        """What tells one from all others, also in another run; changes where its content does."""
        ...


class Folder:
    """Pairs of files; images are normalised, and resized to a form or to about their own size."""

    def __init__(
        self, network: nn.Module, pairs: Sequence[Pair], reader: Reader | None, form: Form, about: About
    ) -> None:
        self.pairs, self.reader, self.form, self.about = pairs, reader, form, about
        self.device = device_of(network)

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Labelled:
        """Read an image and its label.

        Raises:
            HotswapError: where one cannot be read.
        """
        pair = self.pairs[index]
        keeps_size = self.about.form is not None and self.about.form[1]
        form = (
            replace(self.form, shape=(self.form.shape[0], *_near(size_of(pair.image)))) if keeps_size else self.form
        )
        (batch,) = images.batches([pair.image], form, 1)
        scale = [torch.tensor(values).view(-1, 1, 1) for values in (form.std, form.mean)]
        picture = from_tensor(batch[0].float() * scale[0] + scale[1], 0.0, 1.0)
        truth = None if self.reader is None or pair.label is None else self.reader.read(pair.label)
        return Labelled(Sample(pair.image.name, (batch.to(self.device),), picture), truth)

    def name(self, index: int) -> str:
        """Names, sizes and times of both files."""
        files = [file for file in (self.pairs[index].image, self.pairs[index].label) if file is not None]
        return " ".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


class Given:
    """Batches from Python, taken apart and kept."""

    def __init__(self, network: nn.Module, batches: Batches, inputs: Pick | None, labels: Truth | None) -> None:
        self.items: list[Labelled] = []
        self._digests: dict[int, str] = {}
        several: Iterable[Any] = [batches] if isinstance(batches, Tensor) else batches
        for batch in several:
            (arguments,) = as_batches(network, [batch], inputs)
            label = labels(batch) if labels is not None else _beside(batch, len(arguments), picked=inputs is not None)
            truth = torch.from_numpy(label) if isinstance(label, np.ndarray) else label
            for *single, label in one_by_one((*arguments, truth)):
                name = f"image {len(self.items) + 1}"
                label = (label[0] if label.dim() > 2 else label).cpu() if isinstance(label, Tensor) else label
                _check_beside(label, single[0], name)
                self.items.append(Labelled(Sample(name, tuple(single), stretched(tuple(single))), label))
        if not self.items:
            raise HotswapError("batches must hold at least one batch of inputs, got none")
        having = [item for item in self.items if item.truth is not None]
        without = len(self.items) - len(having)
        notes = (f"{without} of {len(self.items)} images have no label",) if having and without else ()
        self.items = having or self.items
        truths = [item.truth for item in self.items if isinstance(item.truth, Tensor)]
        numbers = any(x.is_floating_point() for x in truths)
        self.about = About(
            f"{len(self.items)} images",
            labelled=bool(having),
            masks=not numbers and all(x.dtype == torch.bool or int(x.max()) <= 1 for x in truths if x.numel()),
            numbers=numbers,
            notes=notes,
        )

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Labelled:
        """One image."""
        return self.items[index]

    def name(self, index: int) -> str:
        """A digest of its numbers."""
        if index not in self._digests:
            digest, item = hashlib.sha256(), self.items[index]
            for x in (*item.sample.arguments, item.truth):
                digest.update(bytes_of(x) if isinstance(x, Tensor) else repr(x).encode())
            self._digests[index] = digest.hexdigest()
        return self._digests[index]


@dataclass(frozen=True)
class FolderOptions:
    """How files are read; see `hotswap.search`."""

    limit: int
    input_size: tuple[int | None, int, int] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    unit: float = 1.0
    numbers: bool | None = None  # whether labels are depth or flow; None where files tell

    def __post_init__(self) -> None:
        """Check the values a user can get wrong."""
        if type(self.limit) is not int or self.limit < 1:
            raise HotswapError(f"limit must be a whole number of at least 1, got {self.limit!r}")
        if not 0 < self.unit < math.inf:
            raise HotswapError(f"unit must be a number > 0, got {self.unit!r}")


def source_for(
    network: nn.Module,
    given: PathLike | Batches,
    labels: PathLike | Truth | None,
    inputs: Pick | None,
    options: FolderOptions,
) -> Source:
    """The images of a search.

    Raises:
        HotswapError: where there are none, or files cannot be read or do not fit each other.
    """
    if not isinstance(given, str | os.PathLike):
        if labels is not None and not callable(labels):
            raise HotswapError("labels must be a function that picks them of a batch, where images are batches")
        return Given(network, given, inputs, labels)
    if callable(labels):
        raise HotswapError("labels must be a folder, where images are one")
    pairs, notes = find(given, labels, options.limit)
    files = [pair.label for pair in pairs if pair.label is not None]
    reader = reader_for(files, numbers=options.numbers, unit=options.unit) if files else None
    form = images.form_for(network, options.input_size, options.mean, options.std)
    about = About(
        f"{len(pairs)} images from {os.fspath(given)}",
        labelled=reader is not None,
        masks=reader is not None and reader.masks,
        numbers=reader is not None and reader.numbers,
        form=(form, options.input_size is None and image_stats.of(network).size is None),
        notes=tuple(notes),
    )
    for pair in pairs:
        _check_files(pair, reader)
    return Folder(network, pairs, reader, form, about)


def _check_files(pair: Pair, reader: Reader | None) -> None:
    """Refuse files that cannot be read or do not fit each other, before an hour's work ends with one."""
    size = size_of(pair.image)
    if reader is not None and pair.label is not None:
        check_shape(reader.read(pair.label), size, f"label {str(pair.label)!r}", f"image {pair.image.name!r}")


def size_of(file: Path) -> tuple[int, int]:
    """Height and width of an image, upright.

    Raises:
        HotswapError: where it cannot be read.
    """
    try:
        with images.opened(file) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # the tag for orientation: rotated by a quarter
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # a damaged image can make a decoder raise anything
        raise HotswapError(f"cannot read image {str(file)!r} ({type(error).__name__}: {error})") from error


def check_shape(truth: Tensor, size: tuple[int, int], label: str, image: str) -> None:
    """Refuse a label whose height and width are not in the image's ratio.

    Raises:
        HotswapError: with both sizes.
    """
    height, width = truth.shape[-2:]
    if abs(height * size[1] / (width * size[0]) - 1) > 0.02 + 1.5 / min(height, width):
        raise HotswapError(
            f"{label} has {height} x {width} pixels and {image} {size[0]} x {size[1]}: their aspect ratios must be "
            "the same"
        )


def _check_beside(truth: Any, image: Any, name: str) -> None:
    if isinstance(truth, Tensor) and truth.dim() in (2, 3) and isinstance(image, Tensor) and image.dim() == 4:
        check_shape(truth, (image.shape[2], image.shape[3]), "the label", name)


def _near(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1.0, _LONGEST / max(size))
    height, width = (max(_STEP, round(side * factor / _STEP) * _STEP) for side in size)
    return height, width


def _beside(batch: Any, taken: int, *, picked: bool) -> Any:
    """The label in a tuple: what comes after that which the network takes; of a picked batch the last."""
    if isinstance(batch, Mapping) or not isinstance(batch, tuple | list):
        return None
    if picked:
        return batch[-1] if len(batch) > 1 else None
    return batch[taken] if len(batch) > taken else None
