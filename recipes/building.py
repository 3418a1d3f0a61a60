"""Builds a recipe's data and network: built, loaded, swapped, calibrated, frozen."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import hotswap
from hotswap.errors import HotswapError
from hotswap.network.dry_run import Inputs
from hotswap.rates import freeze
from hotswap.targets.output import TARGETS
from hotswap.targets.plan import Plan
from hotswap.zoo import image_stats, names, providers
from hotswap.zoo.image_stats import ImageStats
from recipes import datasets, protocols
from recipes.config import EARLIER, Calibration, DataSet, Recipe, Swap
from recipes.datasets import Item

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
_NORMALISATIONS: Mapping[str, Normalisation] = {
    protocols.IMAGENET: (providers.IMAGENET_MEAN, providers.IMAGENET_STD),
    protocols.PUBLISHED: (protocols.CAFFE_MEAN, protocols.CAFFE_STD),
}


def dataset(named: DataSet, protocol: str | None = None) -> Dataset[Item]:
    """Build a data set of a recipe, with images in 0..1."""
    _here_too()
    said = {"protocol": protocol} if protocol is not None and named.name in protocols.MADE_BY else {}
    return datasets.build(named.name, named.options | said)


def normalisation(recipe: Recipe) -> Normalisation | None:
    """Mean and std of the images that the recipe's network is given, of images in 0..1; None where they stay so."""
    if recipe.protocol is not None and recipe.data.validation.name not in protocols.MADE_BY:
        return _NORMALISATIONS[recipe.protocol]
    mean, std = recipe.model.mean, recipe.model.std
    return None if mean is None or std is None else (mean, std)


def protocol(recipe: Recipe) -> str | None:
    """The name of how the recipe's data are prepared; None where it has none."""
    data_set = recipe.data.validation.name
    if recipe.protocol is not None or data_set not in protocols.KNOWN:
        return recipe.protocol
    if data_set in protocols.MADE_BY:
        return protocols.KNOWN[data_set][0]
    return next((name for name, values in _NORMALISATIONS.items() if values == normalisation(recipe)), None)


def as_seen(recipe: Recipe, data: Dataset[Item]) -> Dataset[Item]:
    """A data set with images normalised for the recipe's network."""
    values = normalisation(recipe)
    return data if values is None else datasets.Normalised(data, *values)


def normalised(recipe: Recipe, image: Tensor) -> Tensor:
    """Normalise an image in 0..1 for the recipe's network."""
    values = normalisation(recipe)
    return image if values is None else datasets.normalised(image, *values)


def example(data: Dataset[Item], seed: int) -> Inputs:
    """The network's input for the first item of a data set, as a batch of one."""
    with datasets.seeded(seed):
        return datasets.collate([data[0]])[0]


def spec(recipe: Recipe) -> names.Spec:
    """The name of the recipe's network, with its options."""
    parsed = names.parse(recipe.model.name)
    return replace(parsed, options={**parsed.options, **recipe.model.options})


def usual_options(recipe: Recipe) -> dict[str, Any]:
    """Options of the recipe's own network that have a default, with it; none of a provider's."""
    _here_too()
    named = spec(recipe)
    return providers.factory_defaults(named) if named.is_factory else {}


def plain(recipe: Recipe) -> nn.Module:
    """Build the recipe's plain network; the seed decides random weights."""
    _here_too()
    with datasets.seeded(recipe.seed):
        return providers.build(str(spec(recipe)), trusted=True)


def network(recipe: Recipe, data: Dataset[Item], device: torch.device, earlier: Mapping[str, Path]) -> nn.Module:
    """The network that a run starts with: checkpoint loaded, swapped, calibrated and frozen.

    Args:
        recipe: what it is like.
        data: what it is trained on, as it sees it, to calibrate on.
        device: where it is calibrated, and left.
        earlier: the checkpoints that arms run before this one ended with.
    """
    model, first = plain(recipe), example(data, recipe.seed)
    if recipe.model.checkpoint is not None:
        model = hotswap.load(_file(recipe.model.checkpoint, earlier), model=model)
    settings = recipe.calibration
    for swap in recipe.swaps:
        options = {name: getattr(swap, name) for name in Swap.model_fields}
        named = {swap.targets} if isinstance(swap.targets, str) else {*swap.targets}
        if settings is not None and (swap.projection or named & {*TARGETS}):  # which data say more about
            options["calibrate_on"] = _calibrating(recipe, settings, data, torch.device("cpu"))
        model = hotswap.convert(model, **options, example_inputs=first)
    model.to(device)
    if settings is not None and hotswap.status(model).plan is not None:
        inputs = _calibrating(recipe, settings, data, device)
        hotswap.calibrate(model, inputs, deviation=settings.deviation, conserve=settings.conserve)
    freeze(model, recipe.freeze, first)
    return _labelled(model, recipe)


def _calibrating(recipe: Recipe, settings: Calibration, data: Dataset[Item], device: torch.device) -> list[Inputs]:
    """The first batches of a data set."""
    wanted = min(settings.batches * recipe.batch_size, datasets.length(data))
    with datasets.seeded(recipe.seed):
        groups = datasets.chunks(range(wanted), recipe.batch_size)
        return [datasets.moved(x, device) for x, _ in datasets.batches(data, groups)]


def network_again(recipe: Recipe, data: Dataset[Item], device: torch.device, plan: Plan | None) -> nn.Module:
    """The network of a resumed run: the same swaps, but meaningless weights."""
    model, first = plain(recipe), example(data, recipe.seed)
    if plan is not None:
        model = hotswap.apply(model, plan, example_inputs=first, inplace=True, check=False)
    freeze(model, recipe.freeze, first)
    return _labelled(model.to(device), recipe)


def recordable(recipe: Recipe) -> str | None:
    """The network's name for its checkpoints; None if a file may not name it."""
    try:
        return providers.architecture(str(spec(recipe)))
    except HotswapError:
        return None


def _labelled(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The network, which its checkpoints say the protocol of."""
    image_stats.put(model, ImageStats(protocol=protocol(recipe)))
    return model


def _file(checkpoint: str, earlier: Mapping[str, Path]) -> str | Path:
    if not checkpoint.startswith(EARLIER):
        return checkpoint
    name = checkpoint.removeprefix(EARLIER)
    if name not in earlier:
        raise HotswapError(
            f"model.checkpoint is where arm {name!r} ended, which has not been run here; pass --checkpoint"
        )
    return earlier[name]


def _here_too() -> None:
    """Make modules of the current folder importable, as with `python -m`."""
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 (sys.path holds text)
        sys.path.insert(0, here)
