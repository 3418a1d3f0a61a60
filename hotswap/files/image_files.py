"""The images in a folder, by name. Imports no torch, so that a folder without any is refused at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike

Item = TypeVar("Item")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def find(folder: PathLike, limit: int) -> list[Path]:
    """The images in a folder, sorted by name; at most `limit`, evenly spread over all. Subfolders are left out."""
    try:
        images = sorted(
            file
            for file in Path(folder).iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
    except OSError as error:
        raise HotswapError(f"cannot read images from {str(folder)!r}: {error.strerror}") from error
    if not images:
        raise HotswapError(f"there is no image in {str(folder)!r}; its files must end in {', '.join(SUFFIXES)}")
    return spread(images, limit)


def spread(files: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of them, evenly spread over all."""
    return [files[index * len(files) // limit] for index in range(limit)] if len(files) > limit else list(files)
