"""Reads checkpoints without running code in them."""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hotswap.checkpoint.metadata import ENTRY, Metadata, from_entry, parse_json, parse_plan
from hotswap.errors import HotswapError, first_line
from hotswap.files import hub, pickles, shards, tars
from hotswap.files.atomic import PathLike, check_readable, read_text
from hotswap.files.weight_names import clipped, listed
from hotswap.targets.plan import Plan

# Where training scripts put a network's weights, the likeliest first. Averaged weights come last: they are taken
# only where there are no others.
_NESTINGS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
_MAX_NESTING = 4
_LARGEST_HEADER = 16 * 2**20  # bytes of a safetensors header: a hundred thousand tensors
_TAR = b"ustar"  # 257 bytes into a tar archive
_LARGEST_PLAN = 16 * 2**20  # bytes of a plan's file


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, under the file's names, and its metadata."""

    path: Path
    state_dict: dict[str, Tensor]
    metadata: Metadata | None  # None in files that hotswap did not write
    notes: tuple[str, ...] = ()  # which entries were unwrapped or left out
    versions: Mapping[str, Any] = field(default_factory=dict)  # of modules, as torch keeps them beside a state_dict


def read(path: PathLike) -> Checkpoint:
    """Read a checkpoint without running any code in it; its kind is told by its content.

    Of `.pt`/`.pth`/`.bin`/`.ckpt` files the usual nestings are opened (`state_dict`, `model`, ..., and an average of
    the weights where there is nothing else). Tensors come to the CPU, in the file's dtypes, and are mapped from the
    file rather than read where its format allows it.

    Args:
        path: a file; the index of one in parts, `NAME.safetensors.index.json`, or the name without its end; or
            `hf-hub:owner/name[@revision]`, which is fetched.

    Raises:
        HotswapError: where the file is missing, damaged, no checkpoint, or would need code to be read, or the hub
            does not give it.
    """
    if isinstance(path, str) and hub.is_address(path):
        fetched = hub.weights(hub.parse(path))
        checkpoint = read(fetched.path)
        note = () if hub.parse(path).is_pinned else (f"{path} is at commit {fetched.address.revision}",)
        return replace(checkpoint, notes=(*note, *checkpoint.notes))
    if (index := shards.index_at(path)) is not None:
        return _read_sharded(index)
    file = check_readable(path)
    try:
        with file.open("rb") as stream:
            start = stream.read(262)
    except OSError as error:
        raise HotswapError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if start[8:9] == b"{":  # asked first, because the eight bytes before it, a length, can look like all the others
        metadata, tensors = _tensors(file)
        return Checkpoint(file, tensors, from_entry(metadata.get(ENTRY), file))
    if start.startswith(b"PK\x03\x04"):
        return _read_torch(file, mapped=True)
    if start.startswith(b"\x80"):
        return _read_torch(file, mapped=False)
    if start[257:262] == _TAR and tars.is_torch_tar(file):
        return _of_content(file, _load_tar(file))
    raise HotswapError(f"cannot read {str(path)!r}: {_why_neither(start)}")


# Files in another format: their first bytes, what they are, and what to do.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; fetch that with `git lfs pull`"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first: `gunzip FILE`, or `tar -xzf FILE` where it is an archive"),
    (b"BZh", "compressed by bzip2; unpack it first: `bunzip2 FILE`, or `tar -xjf FILE` where it is an archive"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first: `unxz FILE`, or `tar -xJf FILE` where it is an archive"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first: `unzstd FILE`"),
    (b"\x89HDF", "an HDF5 file, as Keras writes; only weights of PyTorch are read"),
    (b"\x93NUMPY", "an array of NumPy; only weights of PyTorch are read"),
    (b"GGUF", "a GGUF file; only safetensors files and those of torch.save are read"),
)


def _why_neither(start: bytes) -> str:
    """Why a file of another format is not read, and what to do."""
    if start.lstrip()[:1] == b"<":
        return "it is a web page or XML, so the download probably failed; download it again"
    for begin, what in _OTHERS:
        if start.startswith(begin):
            return f"it is {what}"
    if start[257:262] == _TAR:
        return "it is a tar archive; unpack it first, `tar -xf FILE`, and name the file of weights that was in it"
    return "it is damaged, or neither a safetensors file nor written by torch.save"


def read_plan(path: PathLike) -> Plan:
    """Read a plan that was written as JSON.

    Raises:
        HotswapError: where the file cannot be read, or holds anything but a plan.
    """
    text = read_text(path, "a plan as JSON", _LARGEST_PLAN)
    return parse_plan(parse_json(text, str(path)), str(path))


def _read_sharded(index: Path) -> Checkpoint:
    names, entry = shards.read_index(index)
    tensors: dict[str, Tensor] = {}
    for shard, wanted in names.items():
        _, held = _tensors(index.with_name(shard))
        if missing := [name for name in wanted if name not in held]:
            raise HotswapError(f"{shard!r} must hold {missing[0]!r}, as {str(index)!r} says, and does not")
        tensors |= {name: held[name] for name in wanted}
    return Checkpoint(index, tensors, from_entry(entry, index))


def _tensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the memory-mapped tensors of a safetensors file."""
    try:
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        if header > _LARGEST_HEADER:
            raise OSError(f"a header of {header / 1e6:.3g} MB, larger than any is")  # noqa: TRY301 (one message)
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            return metadata, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise HotswapError(
            f"cannot read {str(file)!r}: it is damaged or cut short ({first_line(error)}); copy or download it again"
        ) from error


def _read_torch(file: Path, *, mapped: bool) -> Checkpoint:
    return _of_content(file, load_torch(file, mapped=mapped))


def _load_tar(file: Path) -> Any:
    try:
        return tars.load(file)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise HotswapError(f"cannot read {str(file)!r}: {_torch_reason(error)}") from error


def _of_content(file: Path, content: Any) -> Checkpoint:
    entry = dict.get(content, ENTRY) if isinstance(content, dict) else None
    metadata = from_entry(entry, file)
    state, versions, notes = _unwrapped_state(content, file)
    if why := pickles.why_too_large(state.values(), file):
        raise HotswapError(f"cannot read {str(file)!r}: {why}")
    return Checkpoint(file, state, metadata, () if metadata is not None else notes, versions)


def load_torch(file: Path, *, mapped: bool) -> Any:
    """Load a file of torch.save without running code.

    Args:
        file: it must begin as a zip file or a pickle does, which `mapped` tells apart.
        mapped: whether it is a zip file; tensors are then mapped from it.

    Raises:
        HotswapError: where it is damaged, or would need code, or more memory than it has bytes.
    """
    try:
        why = pickles.why_no_archive(file) if mapped else pickles.why_no_pickle(file)
        if why is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle's age and the like
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise HotswapError(f"cannot read {str(file)!r}: {_torch_reason(error)}") from error
    raise HotswapError(f"cannot read {str(file)!r}: {why}")


def _torch_reason(error: Exception) -> str:
    needed = re.search(r"GLOBAL (\S+)|but got <class '([^']+)'>", str(error))
    if isinstance(error, pickle.UnpicklingError) and needed:
        return (
            f"it holds more than tensors, numbers and text ({clipped(needed[1] or needed[2], 80)}), which could run "
            f"code, and hotswap runs none from a file; {pickles.TAKE_OUT}"
        )
    return (
        f"it is damaged, cut short, or a pickle of more than tensors, which could run code ({type(error).__name__}); "
        "copy or download it again, or save a state_dict with torch.save"
    )


def _unwrapped_state(content: Any, file: Path) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """Find the weights in a training script's checkpoint: weights, module versions, notes."""
    notes: list[str] = []
    for _ in range(_MAX_NESTING + 1):
        if not isinstance(content, dict):
            raise HotswapError(f"{str(file)!r} must hold a state_dict, got a {type(content).__name__}")
        attribute = getattr(content, "_metadata", None)
        content = dict(dict.items(content))  # a pickle can set attributes, `items` too, on an OrderedDict
        inner = _nesting(content, file)
        if inner is None:
            break
        notes.append(f"took the weights from its entry {inner!r}")
        if inner not in _AVERAGED and (average := [key for key in _AVERAGED if key in content]):
            notes.append(f"it also holds averaged weights, in {average[0]!r}, which were not taken")
        content = content[inner]
    else:
        raise HotswapError(
            f"{str(file)!r} must hold a state_dict, got more than {_MAX_NESTING} dictionaries in each other"
        )
    state = {key: Tensor.detach(x) for key, x in content.items() if isinstance(key, str) and _is_tensor(x)}
    if not state:
        keys = listed(map(repr, content)) if content else "nothing"
        raise HotswapError(f"{str(file)!r} must hold a state_dict, that is tensors by name, got only {keys}")
    if all(name.startswith("module.") or name == "n_averaged" for name in state):
        state.pop("n_averaged", None)  # the counter of torch.optim.swa_utils.AveragedModel
    if left := [key for key in content if key not in state]:
        notes.append(f"left aside {len(left)} entries that are no weights: {listed(map(repr, left))}")
    if unusual := [name for name, x in state.items() if why_unusual(x)]:
        raise HotswapError(
            f"{str(file)!r}: weight {unusual[0]!r} is {why_unusual(state[unusual[0]])}; save plain tensors"
        )
    return state, _versions(attribute), tuple(notes)


def _versions(attribute: Any) -> dict[str, Any]:
    """The attribute `_metadata` of a state_dict, if it has the form that `load_state_dict` needs."""
    if type(attribute) not in (dict, OrderedDict):
        return {}
    versions: dict[str, Any] = dict(dict.items(attribute))
    return versions if all(type(x) is dict for x in versions.values()) else {}


def _nesting(content: Mapping[Any, Any], file: Path) -> str | None:
    """The key of the entry that holds the weights; None if `content` itself holds them."""
    known = [key for key in (*_NESTINGS, *_AVERAGED) if isinstance(content.get(key), dict)]
    if known:
        return known[0]
    if any(_is_tensor(value) for value in content.values()):
        return None
    others = [
        key for key, value in content.items() if isinstance(value, dict) and any(map(_is_tensor, dict.values(value)))
    ]
    if len(others) > 1:
        raise HotswapError(
            f"{str(file)!r} holds several sets of weights ({listed(map(repr, others))}); save the one you want alone"
        )
    return others[0] if others else None


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def why_unusual(x: Any) -> str | None:
    """The kind of an unusual tensor; None for a plain one."""
    if type(x) not in (Tensor, nn.Parameter):
        return f"a {type(x).__name__}"
    if x.is_meta:
        return "without values, on the meta device"
    if x.layout != torch.strided or x.is_quantized:
        return "sparse or quantised"
    return None
