"""Data sets by name, and the order in which a training run draws items.

A data set's items are pairs of inputs and truth. Inputs are an image [3, H, W] in 0..1, or a tuple of what the
network takes. Truth is labels [H, W], int64; depth [1, H, W]; flow [2, H, W]; or a pair of one of the last two and
its unit, a number that errors in it are multiplied by.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hotswap.errors import HotswapError
from hotswap.network.names import closest
from hotswap.network.preserve import random_numbers_kept

Tensors = Tensor | tuple[Tensor, ...]
Item = tuple[Tensors, Tensors]

NAMES = {
    "scenes": "recipes.scenes:Scenes",
    "landwater": "recipes.landwater:LandWater",
    "voc": "recipes.data.voc:VocSbd",
    "nyu": "recipes.data.upsampling:nyu",
    "sintel": "recipes.data.upsampling:sintel",
}


def build(name: str, options: dict[str, object]) -> Dataset[Item]:
    """A data set by its short name, or `package.module:factory` of the user's own.

    Raises:
        HotswapError: where there is none of that name, or it cannot be made, with the reason.
    """
    module, colon, factory = NAMES.get(name, name).partition(":")
    if not colon:
        raise HotswapError(
            f"there is no data set {name!r}{closest(name, NAMES)}; known: {', '.join(NAMES)}, "
            "or package.module:factory"
        )
    try:
        make = getattr(importlib.import_module(module), factory)
        dataset: Dataset[Item] = make(**options)
        if length(dataset) < 1:
            raise ValueError("it holds nothing")  # noqa: TRY301 (told like all that is wrong with a data set)
    except HotswapError:
        raise
    except (ImportError, AttributeError, TypeError, ValueError, OSError) as error:
        raise HotswapError(f"data set {name!r} cannot be made: {' '.join(str(error).split())}") from error
    return dataset


def length(dataset: Dataset[Item]) -> int:
    """The number of items."""
    return len(dataset)  # type: ignore[arg-type]  # torch's map-style data sets have one, but do not say so


def data_order(length: int, count: int, seed: int) -> list[int]:
    """Indices of `count` draws from `length` items: one shuffled pass after another, fixed by the seed."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-count // length)
    order: list[int] = torch.cat([torch.randperm(length, generator=generator) for _ in range(passes)]).tolist()
    return order[:count]


class Draws(Dataset[Item]):
    """All draws of a run. Each draw, its random crop included, depends on the seed and its number alone."""

    def __init__(self, dataset: Dataset[Item], count: int, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.order = data_order(length(dataset), count, seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> Item:
        with seeded(self.seed, number):
            return self.dataset[self.order[number]]


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators with some numbers; restore their states afterwards."""
    with random_numbers_kept(int(np.random.SeedSequence(numbers).generate_state(1)[0])):
        yield


def batches(dataset: Dataset[Item], numbers: Sequence[list[int]], workers: int = 0) -> Iterator[Item]:
    """Batches of items, by lists of their indices, in this order."""
    loader: DataLoader[Item] = DataLoader(
        dataset,
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),  # else it would draw from the caller's generator
    )
    yield from loader


def chunks(numbers: Sequence[int], size: int) -> list[list[int]]:
    """`numbers` in groups of `size`; the last may be smaller."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def collate(items: Sequence[Item]) -> Item:
    """Stack items to one batch."""
    inputs, truth = zip(*items, strict=True)
    return _stacked(inputs), _stacked(truth)


def moved(tensors: Tensors, device: torch.device) -> Tensors:
    """Move tensors to a device."""
    return tensors.to(device) if isinstance(tensors, Tensor) else tuple(x.to(device) for x in tensors)


def _stacked(items: Sequence[Tensors]) -> Tensors:
    if not isinstance(items[0], Tensor):
        return tuple(torch.stack(_of_one_size(tensors)) for tensors in zip(*items, strict=True))
    return torch.stack(_of_one_size(items))  # type: ignore[arg-type]  # the others are tensors too


def _of_one_size(tensors: Sequence[Tensor]) -> list[Tensor]:
    sizes = {tuple(x.shape) for x in tensors}
    if len(sizes) > 1:
        raise HotswapError(
            f"images of one batch must be of one size, got {', '.join(map(str, sorted(sizes)))}; "
            "let the data set crop them, or take a batch size of 1"
        )
    return list(tensors)


def normalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image - mean) / std, channel by channel: [..., 3, H, W]."""
    first, spread = (torch.tensor(values, device=image.device)[:, None, None] for values in (mean, std))
    return (image - first) / spread


class Normalised(Dataset[Item]):
    """The items of another data set, with normalised images."""

    def __init__(self, dataset: Dataset[Item], mean: Sequence[float], std: Sequence[float]) -> None:
        self.dataset, self.mean, self.std = dataset, mean, std

    def __len__(self) -> int:
        return length(self.dataset)

    def __getitem__(self, index: int) -> Item:
        image, truth = self.dataset[index]
        if not isinstance(image, Tensor):
            raise HotswapError("model.mean and model.std are for items of one image; leave them out")
        return normalised(image, self.mean, self.std), truth
