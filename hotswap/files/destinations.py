"""Checks that a result can be written, before the work. Imports no torch."""

import os
from pathlib import Path

from hotswap.choices import EXPORTS, ONNX, PROGRAM
from hotswap.errors import HotswapError
from hotswap.files import shards
from hotswap.files.atomic import PathLike, check_writable, is_there

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth")
_EXPORTS = {".onnx": ONNX, ".pt2": PROGRAM}
_PAGES = (".html", ".htm")
ARRAYS = (".npy",)
_MAPS = (*ARRAYS, ".png")


def suffix(path: PathLike) -> str:
    """The suffix of a file's name, in lower case."""
    return Path(path).suffix.lower()


def check_checkpoint(path: PathLike, max_shard_size: int | str | None = None) -> None:
    """Check that a checkpoint can be written to `path`.

    Raises:
        HotswapError: where its name does not end in one of the suffixes written, or see `atomic.check_writable`; or
            parts are asked for where there cannot be any.
    """
    if max_shard_size is not None:
        shards.parse_size(max_shard_size)
        if suffix(path) not in SAFETENSORS:
            raise HotswapError(
                f"only a .safetensors file can be written in parts (max_shard_size), got {str(path)!r}"
            )
        if is_there(path):  # `load` would read it instead of the parts
            raise HotswapError(
                f"{str(path)!r} is there already, in one file; remove it, or name another for the parts"
            )
        check_writable(shards.index_of(Path(path)))
    if suffix(path) not in SAFETENSORS + TORCH:
        raise HotswapError(f"a checkpoint's name must end in .safetensors or .pt (or .pth), got {str(path)!r}")
    check_writable(path)


def check_export(path: PathLike, format: str | None = None) -> str:
    """Check that a network can be exported to `path`.

    Returns:
        The format: as given, else what the file's name says.

    Raises:
        HotswapError: where there is no such format, the name does not say it, or see `atomic.check_writable`.
    """
    kind = _EXPORTS.get(suffix(path)) if format is None else format
    if kind is None:
        raise HotswapError(f"an exported file's name must end in .onnx or .pt2, got {str(path)!r}; or give a format")
    if kind not in EXPORTS:
        raise HotswapError(f"format must be {ONNX} or {PROGRAM}, got {kind!r}")
    check_writable(path)
    return kind


def check_report(path: PathLike) -> None:
    """Check that a report can be written to `path`.

    Raises:
        HotswapError: where its name is that of no page, or see `atomic.check_writable`.
    """
    if suffix(path) not in _PAGES:
        raise HotswapError(f"a report's name must end in .html, got {os.fspath(path)!r}")
    check_writable(path)


def check_map(path: PathLike) -> None:
    """Check that a map can be written to `path`.

    Raises:
        HotswapError: where its name is that of no map, or see `atomic.check_writable`.
    """
    check_map_name(path)
    check_writable(path)


def check_map_name(path: PathLike) -> None:
    """Check that a file's name is that of a map.

    Raises:
        HotswapError: where it is not.
    """
    if suffix(path) not in _MAPS:
        raise HotswapError(f"a map's name must end in .npy or .png, which keep its numbers, got {os.fspath(path)!r}")
