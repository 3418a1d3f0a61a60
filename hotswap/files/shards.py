"""Weights in several safetensors files with an index: the layout of transformers and others for large models.

`NAME.safetensors.index.json` says for each weight which file beside it holds it. What hotswap keeps beside the
weights stands in the index.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotswap.errors import HotswapError, one_line
from hotswap.files.atomic import atomic_write, check_readable, is_file, is_there

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".index.json"
_MAX_BYTES = 64 << 20  # of an index; one of a million weights is smaller
_FILE = re.compile(r"(?!\.)[^/\\\0]{1,200}\.safetensors")  # beside the index: no folder, nothing hidden
_OURS = r"-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def index_of(path: Path) -> Path:
    """The path of the index of `NAME.safetensors`."""
    return path.with_name(path.name + INDEX)


def index_at(path: str | os.PathLike[str]) -> Path | None:
    """The index that a path stands for: itself, or that of a file that exists only in parts; else None."""
    if str(path).endswith(INDEX):
        return Path(path)
    index = index_of(Path(path))
    return index if is_file(index) and not is_there(path) else None


def read_index(file: Path) -> tuple[dict[str, list[str]], Any]:
    """Read the names of the weights in each file, and the index's hotswap entry.

    Raises:
        HotswapError: where it is no index, or names a file that lies elsewhere or is missing.
    """
    names, entry = _parsed(file)
    if missing := [shard for shard in names if not is_file(file.parent / shard)]:
        raise HotswapError(
            f"{str(file)!r} needs {missing[0]!r} beside it, and {len(missing)} of its {len(names)} files are "
            "missing; copy or download them all"
        )
    return names, entry


def files_of(index: Path) -> tuple[str, ...]:
    """The names of an index's files, whether or not they exist.

    Raises:
        HotswapError: where it is no index, or names a file that lies elsewhere.
    """
    return tuple(_parsed(index)[0])


def parse_size(size: int | str) -> int:
    """Parse a size in bytes, such as 5GB or 500MiB.

    Raises:
        HotswapError: where it is neither, or not above 0.
    """
    text = str(size).strip().upper()
    parts = re.fullmatch(r"(\d{1,15})\s*([KMG]?I?B?)", text)
    if isinstance(size, bool) or parts is None or parts[2] not in _UNITS or not int(parts[1]):
        raise HotswapError(f"max_shard_size must be a number of bytes or text such as 5GB, got {size!r}")
    return int(parts[1]) * _UNITS[parts[2]]


def split(tensors: "Mapping[str, Tensor]", most: int) -> "list[dict[str, Tensor]]":
    """Split weights, in their order, into files of at most `most` bytes; a larger tensor gets a file of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    taken = 0
    for name, x in tensors.items():
        if shards[-1] and taken + x.nbytes > most:
            shards.append({})
            taken = 0
        shards[-1][name] = x
        taken += x.nbytes
    return shards


def write(shards: "list[dict[str, Tensor]]", path: Path, entry: str) -> None:
    """Write files beside `path`, then their index in one step, which makes them the checkpoint.

    Files have names of their own each time, so that until then an index that was there before finds all of its.

    Raises:
        HotswapError: where they cannot be written; what was there is then still there. What safetensors raises is let
            through.
    """
    from safetensors.torch import save_file  # imports torch

    index, token = index_of(path), secrets.token_hex(4)
    before = _ours(index)
    files = [f"{path.stem}-{token}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    content = {
        "metadata": {"total_size": sum(x.nbytes for shard in shards for x in shard.values()), "hotswap": entry},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    try:
        for file, shard in zip(files, shards, strict=True):
            with atomic_write(path.with_name(file)) as temporary:
                save_file(shard, temporary, {"format": "pt"})
        with atomic_write(index) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except BaseException:  # Ctrl-C too must leave nothing behind
        before = [path.with_name(file) for file in files]
        raise
    finally:
        for old in before:
            with suppress(OSError):
                old.unlink(missing_ok=True)


def is_ours(file: str, name: str) -> bool:
    """Whether a file has the name of a part that hotswap wrote for `name`."""
    return re.fullmatch(re.escape(name.removesuffix(".safetensors")) + _OURS, file) is not None


def _ours(index: Path) -> list[Path]:
    """The files of an index that hotswap wrote. Files of others are not ours to remove."""
    if not is_there(index):
        return []
    try:
        names = files_of(index)
    except HotswapError:  # it is not ours, and is replaced
        return []
    return [index.with_name(name) for name in names if is_ours(name, index.name.removesuffix(INDEX))]


def _parsed(file: Path) -> tuple[dict[str, list[str]], Any]:
    where = str(file)
    if check_readable(file).stat().st_size > _MAX_BYTES:
        raise HotswapError(f"{where!r} is no index of safetensors files: it is above {_MAX_BYTES >> 20} MiB")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HotswapError(f"{where!r} must hold an index of safetensors files ({one_line(error)})") from error
    files = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(files, Mapping) or not files:
        raise HotswapError(f"{where!r} is no index of safetensors files: it has no weight_map")
    names: dict[str, list[str]] = {}
    for name, shard in files.items():
        if not isinstance(shard, str) or not _FILE.fullmatch(shard):
            raise HotswapError(
                f"{where!r} must name safetensors files that lie beside it, and names {str(shard)[:100]!r}"
            )
        names.setdefault(shard, []).append(name)
    metadata = index.get("metadata")
    return names, metadata.get("hotswap") if isinstance(metadata, Mapping) else None
