"""Pages of predictions: the arms of a recipe side by side, or one network on many images."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch.utils.data import Dataset

import hotswap
from hotswap.errors import HotswapError
from hotswap.files import image_files
from hotswap.files.atomic import PathLike, atomic_write, is_same_file
from hotswap.zoo import images as folders
from recipes import building, engine
from recipes.checkpointing import LAST
from recipes.config import Recipe
from recipes.datasets import Item, Tensors, length, seeded
from recipes.drawing import draw
from recipes.pictures import sheet

PAGE = "predictions.png"
_ROWS = 4  # images on the page of a comparison
_WIDTH = 220  # of a panel there, in pixels


def draw_comparison(arms: Mapping[str, Recipe], folder: Path) -> Path:
    """A page of a few validation images with the predictions of each arm's last checkpoint.

    Arms whose task, data or normalisation is not the last one's are left out.
    """
    *_, last = arms.values()
    networks = {
        name or "prediction": engine.load(recipe, folder / name / LAST, torch.device("cpu"))
        for name, recipe in arms.items()
        if _shown_by(recipe) == _shown_by(last)
    }
    items = _validation(last, _ROWS)
    rows = [draw(networks, seen, shown, truth, last.task).panels for _, seen, shown, truth in items]
    path = folder / PAGE
    page = sheet(f"{folder.name}: the first images of the validation data", rows, width=_WIDTH)
    return _saved(page, path)


def draw_predictions(
    recipe: Recipe, checkpoint: PathLike, images: PathLike | None, folder: Path, limit: int
) -> Iterator[Path]:
    """Draw a checkpoint's predictions, one page per image; a swapped network's beside those of its plain twin.

    Args:
        recipe: whose network it is.
        checkpoint: its weights and swaps.
        images: a folder of them; None takes the recipe's validation data, with truth.
        folder: where to; created if it is missing.
        limit: at most so many images, evenly spread over the folder, or the data set's first.

    Yields:
        The files written: NAME.png, the page, and NAME_prediction.png, the map of the checkpoint's network. Names are
        those of images, with their suffix where several differ only in that.
    """
    if images is not None and is_same_file(images, folder):
        raise HotswapError(f"pages would replace images in {str(folder)!r}; name another folder to write to")
    network = engine.load(recipe, checkpoint, torch.device("cpu"))
    networks = {"prediction": network}
    if hotswap.status(network).plan is not None:
        networks = {"plain, the same weights": hotswap.revert(network), "swapped": network}
    *_, main = networks
    named = _validation(recipe, limit) if images is None else _photographs(recipe, images, limit)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HotswapError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
    for name, seen, shown, truth in named:
        drawn = draw(networks, seen, shown, truth, recipe.task)
        pages = {f"{name}.png": sheet(name, [drawn.panels]), f"{name}_prediction.png": drawn.predictions[main]}
        for file, page in pages.items():
            yield _saved(page, folder / file)


def _saved(page: Image, path: Path) -> Path:
    with atomic_write(path) as temporary:
        page.save(temporary, format="PNG")
    return path


Named = tuple[str, Tensors, Tensors, Tensors | None]  # name, the network's input, the input as shown, truth


def _validation(recipe: Recipe, limit: int) -> Iterator[Named]:
    data = building.dataset(recipe.data.validation, recipe.protocol)
    for index in range(min(limit, length(data))):
        shown, truth = _item(data, index)
        seen, _ = _item(building.as_seen(recipe, data), index)
        yield f"{index:05}", seen, shown, truth


def _photographs(recipe: Recipe, folder: PathLike, limit: int) -> Iterator[Named]:
    seen, _ = _item(building.dataset(recipe.data.validation, recipe.protocol), 0)
    if not isinstance(seen, torch.Tensor):
        raise HotswapError("the network of this recipe takes more than an image; leave out --images")
    files = image_files.find(folder, limit)
    stems = Counter(file.stem for file in files)
    for file in files:
        image = folders.read(file)
        name = file.stem if stems[file.stem] == 1 else file.name
        yield name, building.normalised(recipe, image), image, None


def _item(data: Dataset[Item], index: int) -> Item:
    """An item with the same random crop each time."""
    with seeded(0, index):
        return data[index]


def _shown_by(recipe: Recipe) -> tuple[Any, ...]:
    """The settings that decide how predictions are shown. Arms that agree in them stand side by side."""
    return recipe.task, recipe.data.validation, recipe.protocol, recipe.model.mean, recipe.model.std
