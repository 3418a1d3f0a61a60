"""Checks that need no torch, whose import takes seconds. The library repeats them."""

from hotswap.errors import HotswapError
from hotswap.files import hub, image_files, shards
from hotswap.files.atomic import check_readable, is_same_file
from hotswap.zoo import names


def check(*, network: str | None = None, checkpoint: str | None = None, images: str | None = None) -> None:
    """Refuse a malformed name of a network, a checkpoint that is missing, a folder without images."""
    if network is not None:
        _ = names.parse(network).on_hub  # the property checks the form of an address
    if checkpoint is not None and hub.is_address(checkpoint):
        hub.parse(checkpoint)
    elif checkpoint is not None:
        check_readable(shards.index_at(checkpoint) or checkpoint)
    if images is not None:
        image_files.find(images, 1)


def check_other_file(path: str, *inputs: str | None) -> None:
    """Refuse to overwrite an input."""
    if any(name is not None and is_same_file(path, name) for name in inputs):
        raise HotswapError(f"the output {path!r} is also an input; name another file")
