"""Images and labels in folders, paired by their names. Imports no torch."""

import sys
from dataclasses import dataclass
from pathlib import Path

from hotswap.errors import HotswapError
from hotswap.files import image_files
from hotswap.files.atomic import PathLike

LABELS = (".png", ".npy", ".flo", ".tif", ".tiff", ".bmp", ".webp", ".jpg", ".jpeg")  # the usual ones first
_EXACT = LABELS[:3]  # in a folder that holds both, these are the labels where an image has the same name
_JOINS = "_-."  # between an image's name and what a label's has after it, as in 0001_mask.png


@dataclass(frozen=True)
class Pair:
    """An image and its label."""

    image: Path
    label: Path | None


def find(images: PathLike, labels: PathLike | None, limit: int) -> tuple[list[Pair], list[str]]:
    """Pair the images of a folder with labels, at most `limit` pairs, evenly spread.

    A label has its image's name, but for the suffix, or that name and more after `_`, `-` or `.`.

    Returns:
        The pairs, by name, and notes on images without a label.

    Raises:
        HotswapError: where there is no image, no label, or no pair.
    """
    if labels is None:
        return [Pair(file, None) for file in image_files.find(images, limit)], []
    try:
        inside = sorted(file for file in Path(labels).iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise HotswapError(f"cannot read labels from {str(labels)!r}: {error.strerror}") from error
    known = [file for file in inside if file.suffix.lower() in LABELS]
    if not known:
        other = f"; {inside[0].name!r} is something else" if inside else ""
        raise HotswapError(f"there is no label in {str(labels)!r}; its files must end in {', '.join(LABELS)}{other}")
    files = image_files.find(images, sys.maxsize)
    if Path(images).resolve() == Path(labels).resolve():
        known = [file for file in known if file.suffix.lower() in _EXACT]
        files = [file for file in files if file.suffix.lower() not in _EXACT]
    by_stem: dict[str, Path] = {}
    for file in sorted(known, key=lambda file: LABELS.index(file.suffix.lower())):
        by_stem.setdefault(file.stem, file)
    pairs = [Pair(file, label) for file in files if (label := _label_of(file.stem, by_stem)) is not None]
    if not pairs:
        name = files[0].name if files else "no image"
        raise HotswapError(
            f"no image has a label of its name: {str(images)!r} holds {name!r}, {str(labels)!r} {known[0].name!r}"
        )
    without = [file.name for file in files if file not in {pair.image for pair in pairs}]
    notes = [f"{len(without)} of {len(files)} images have no label, such as {without[0]!r}"] if without else []
    return image_files.spread(pairs, limit), notes


def _label_of(stem: str, by_stem: dict[str, Path]) -> Path | None:
    if stem in by_stem:
        return by_stem[stem]
    longer = [name for name in by_stem if name.startswith(stem) and name[len(stem)] in _JOINS]
    return by_stem[longer[0]] if len(longer) == 1 else None
