"""Checks that need no torch, whose import takes seconds. The library repeats them."""

from hotswap.errors import HotswapError
from hotswap.files import hub, image_files, shards
from hotswap.files.atomic import check_readable, is_same_file
from hotswap.zoo import names


def check_network(name: str | None) -> None:
    """Refuse a malformed name of a network."""
    if name is not None:
        _ = names.parse(name).on_hub  # the property checks the form of an address


def check_checkpoint(path: str | None) -> None:
    """Refuse a checkpoint that is missing."""
    if path is None:
        return
    if hub.is_address(path):
        hub.parse(path)
    else:
        check_readable(shards.index_at(path) or path)


def check_images(folder: str | None) -> None:
    """Refuse a folder without images."""
    if folder is not None:
        image_files.find(folder, 1)


def check_other_file(path: str, *inputs: str | None) -> None:
    """Refuse to overwrite an input."""
    if any(name is not None and is_same_file(path, name) for name in inputs):
        raise HotswapError(f"the output {path!r} is also an input; name another file")
