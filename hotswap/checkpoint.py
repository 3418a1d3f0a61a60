"""Checkpoints: read without running anything they contain, written in one step.

Written are `.safetensors`, with a JSON entry `hotswap` in the metadata (in parts, with an index, where that is asked
for), and `.pt`/`.pth`, which hold `{"state_dict": tensors, "hotswap": the same JSON}`. The tensors are the plain
network's, under its names: learned scales go into the JSON, so that a loader that knows nothing of hotswap reads the
original network's weights.
"""

import json
import logging
import math
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import hotswap
from hotswap import hf, hub, install, network_names, pickled, sharded, stated, zoo
from hotswap.api import apply, check_swapped
from hotswap.copying import deep_copy
from hotswap.destinations import SAFETENSORS, check_checkpoint, suffix
from hotswap.errors import HotswapError
from hotswap.files import PathLike, atomic_write, check_readable, read_text
from hotswap.matching import clipped, listed, matched
from hotswap.observe import Inputs
from hotswap.stated import Stated
from hotswap.targets.plan import Plan

# 1: guides were lone strings; 2: plans had no enlargements (Plan.from_dict still reads both); 3: there was no config;
# 4: there were no images.
FORMAT_VERSION = 5

_ENTRY = "hotswap"
_SCALE = ".guide_log_scale"  # how the names of learned scales end
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
_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
_MAX_NESTING = 4
_ROOM = (
    1 << 29
)  # bytes that a network may take beside its weights, in float32 where the file has them in half precision
_LARGEST_HEADER = 16 * 2**20  # bytes of a safetensors file's: a hundred thousand tensors
_LARGEST_PLAN = 16 * 2**20  # bytes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metadata:
    """What hotswap writes beside the tensors."""

    architecture: str | None = None  # a name for `zoo.build`
    plan: Plan | None = None  # None where nothing is swapped
    learned_scales: Mapping[str, Tensor] = field(default_factory=dict)  # by their names in the swapped state_dict
    version: str = ""  # of hotswap, that wrote it
    config: Mapping[str, Any] | None = None  # of a network of transformers
    images: Stated = field(default_factory=Stated)  # that the network was trained on


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors, under the names they have in it."""

    path: Path
    state_dict: dict[str, Tensor]
    metadata: Metadata | None  # None in files that hotswap did not write
    notes: tuple[str, ...] = ()  # what was unwrapped or left aside
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
        found = read(fetched.path)
        note = () if hub.parse(path).is_pinned else (f"{path} is at commit {fetched.address.revision}",)
        return replace(found, notes=(*note, *found.notes))
    if (index := sharded.index_at(path)) is not None:
        return _read_sharded(index)
    file = check_readable(path)
    try:
        with file.open("rb") as stream:
            start = stream.read(262)
    except OSError as error:
        raise HotswapError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if start[8:9] == b"{":  # asked first, because the eight bytes before it, a length, can look like all the others
        return _read_safetensors(file)
    if start.startswith(b"PK\x03\x04"):
        return _read_torch(file, mapped=True)
    if start.startswith(b"\x80"):
        return _read_torch(file, mapped=False)
    raise HotswapError(f"cannot read {str(path)!r}: {_why_neither(start)}")


# Files of weights in another form: what they begin with, what they are, what to do.
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
    """Why a file that neither safetensors nor torch.save wrote is not read, and what to do."""
    if start.lstrip()[:1] == b"<":
        return "it is a web page or XML, so the download probably failed; download it again"
    for begin, what in _OTHERS:
        if start.startswith(begin):
            return f"it is {what}"
    if start[257:262] == b"ustar":
        return "it is a tar archive; unpack it first, `tar -xf FILE`, and name the file of weights that was in it"
    return "it is damaged, or neither a safetensors file nor written by torch.save"


def read_plan(path: PathLike) -> Plan:
    """Read a plan that was written as JSON.

    Raises:
        HotswapError: where the file cannot be read, or holds anything but a plan.
    """
    text = read_text(path, "a plan as JSON", _LARGEST_PLAN)
    return _plan(_from_json(text, str(path)), str(path))


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, mapped: bool = False) -> tuple[str, ...]:
    """Put a checkpoint's weights into a network: all of them, by name, each of the right shape.

    Names are brought to the network's: see `matching.matched`, and `hf.renamed` for networks of transformers.
    Floating-point weights take the dtype they have in the file.

    Args:
        model: the network.
        checkpoint: what `read` read.
        mapped: leave the weights mapped from the file rather than copy them, so that they take memory once, and only
            as far as they are used. Who writes into the file, rather than replace it, then changes the network.

    Returns:
        Notes on what was done to names.

    Raises:
        HotswapError: where names or shapes differ; the network is then as it was.
    """
    metadata = checkpoint.metadata
    own = model.state_dict(keep_vars=True)
    scales = {} if metadata is None else metadata.learned_scales
    try:
        weights, versions, notes = matched(checkpoint.state_dict, checkpoint.versions, _without(own, scales))
    except HotswapError as error:
        raise HotswapError(f"cannot take the weights of {str(checkpoint.path)!r}: {error}") from error
    if weights.keys() | scales.keys() != own.keys() and (renamed := hf.renamed(model, weights)) is not None:
        weights = renamed.weights
        notes += ("the weights have the names that transformers gives them in files",)
        if renamed.unexpected:
            notes += (f"left aside {len(renamed.unexpected)} that the network has not: {listed(renamed.unexpected)}",)
    state = OrderedDict({**weights, **scales})
    if metadata is not None:
        versions = getattr(model.state_dict(), "_metadata", {})  # it was saved from the modules of today
    if versions:
        state._metadata = versions  # type: ignore[attr-defined]  # where load_state_dict looks for them
    _check_fits(model, state, checkpoint.path)
    if mapped:
        _assign(model, state)
        return notes
    for name, tensor in own.items():
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)
    return notes


def save(
    model: nn.Module, path: PathLike, architecture: str | None = None, *, max_shard_size: int | str | None = None
) -> None:
    """Write a network, swapped or plain, to `.safetensors`, `.pt` or `.pth`, in one step.

    Args:
        model: the network; one wrapped by `torch.compile`, DataParallel or DistributedDataParallel is unwrapped.
        path: where to; an existing file is replaced.
        architecture: the network's name for `zoo.build`, so that `load` can build it. Options that fetch weights are
            left out of it. A `package.module:factory` is recorded for people to read, but `load` will not call it.
            Networks of transformers need no name: their class and configuration are recorded.
        max_shard_size: where the weights are larger, `NAME.safetensors` is written in parts of at most so much, a
            number of bytes or text such as "5GB", with an index `NAME.safetensors.index.json`. The name without
            `.index.json` reads them again.

    Raises:
        HotswapError: where the network holds something other than plain tensors, the name is not one that a file may
            hold, or `path` cannot be written; what was there is then still there.
    """
    check_checkpoint(path, max_shard_size)
    model = _unwrapped(model)
    install.require_own_input(model)
    plan = install.current_plan(model)
    state = model.state_dict()
    scales = {} if plan is None else {name: x for name, x in state.items() if name.endswith(_SCALE)}
    architecture, config = _recorded(model, architecture)
    metadata = Metadata(architecture, plan, scales, config=config, images=stated.of(model))
    write({name: x for name, x in state.items() if name not in scales}, path, metadata, max_shard_size)


def write(
    tensors: Mapping[str, Any], path: PathLike, metadata: Metadata, max_shard_size: int | str | None = None
) -> None:
    """Write a state_dict, and what hotswap keeps beside it, in one step; see `save`.

    Raises:
        HotswapError: as `save`.
    """
    check_checkpoint(path, max_shard_size)
    plain = _separate(tensors)
    entry = _to_json(metadata)
    shards = [plain] if max_shard_size is None else sharded.split(plain, sharded.parse_size(max_shard_size))
    try:
        if len(shards) > 1:
            sharded.write(shards, Path(path), entry)
            return
        with atomic_write(path) as temporary:
            if suffix(path) in SAFETENSORS:
                save_file(plain, temporary, {"format": "pt", _ENTRY: entry})
            else:
                with temporary.open("wb") as stream:  # a stream, because torch writes a file's name into the file
                    torch.save({"state_dict": plain, _ENTRY: entry}, stream)
    except KeyError as error:
        raise HotswapError(f"a safetensors file cannot hold {error.args[0]}; write a .pt file") from error
    except SafetensorError as error:  # a full disk
        raise HotswapError(f"cannot write {str(path)!r}: {_one_line(error)}") from error
    except RuntimeError as error:  # torch's, raised while it handles the error of a full disk
        raise HotswapError(f"cannot write {str(path)!r}: {_one_line(error.__context__ or error)}") from error


def load(
    path: PathLike, model: nn.Module | None = None, *, example_inputs: Inputs | None = None, check: bool = True
) -> nn.Module:
    """The network of a file, swapped as it was when saved, with its weights; in training mode, as built.

    Args:
        path: a file that `save` wrote, or, with `model`, any checkpoint of that network; or a model on the hub,
            `hf-hub:owner/name[@revision]`: which commit it is of is logged.
        model: the plain network, where the file names none, or one of the user's own. It is not changed: the result
            is a copy, in the mode it is in.
        example_inputs: see `plan`; needed where the network takes no image of 224 x 224 and states no other size.
        check: see that with its guide scales at 0 the network gives what the plain one gives, as `convert` does.

    Raises:
        HotswapError: where the file cannot be read (see `read`), names no architecture that it may name and no
            `model` is given, or does not fit the network.
    """
    checkpoint = read(path)
    loaded, notes = load_checkpoint(checkpoint, model, example_inputs=example_inputs, check=check)
    for note in (*checkpoint.notes, *notes):
        _log.info("%s: %s", path, note)
    return loaded


def load_checkpoint(
    checkpoint: Checkpoint,
    model: nn.Module | None = None,
    *,
    inplace: bool = False,
    example_inputs: Inputs | None = None,
    example_of: Callable[[nn.Module], Inputs | None] | None = None,
    check: bool = True,
) -> tuple[nn.Module, tuple[str, ...]]:
    """`load`, of a file that was read already, with the notes of `load_weights`.

    With `inplace`, `model` itself is changed, and the weights stay mapped from the file. `example_of` makes example
    inputs for the plain network.

    Raises:
        HotswapError: as `load`.
    """
    metadata = checkpoint.metadata
    if model is not None:
        loaded = model if inplace else _deep_copy(model)
    elif metadata is not None and metadata.architecture is not None:
        weights = checkpoint.state_dict.values()
        room = zoo.Room(2 * sum(x.nbytes for x in weights) + _ROOM, len(weights))
        loaded = zoo.build(
            metadata.architecture,
            trusted=False,
            initialise=False,
            config=metadata.config,
            most=room,
        )
    else:
        raise HotswapError(
            f"{str(checkpoint.path)!r} does not say which network its weights belong to; build the plain network and "
            "pass it as model (on the command line: --model)"
        )
    if metadata is not None and (model is None or stated.of(model) == Stated()):
        stated.put(loaded, metadata.images)
    if example_of is not None:
        example_inputs = example_of(loaded)
    if metadata is not None and metadata.plan is not None:
        apply(loaded, metadata.plan, example_inputs=example_inputs, inplace=True, check=False)
    notes = load_weights(loaded, checkpoint, mapped=inplace)
    if check and metadata is not None and metadata.plan is not None:  # only now, with the weights
        notes += check_swapped(loaded, example_inputs)
    return loaded, notes


# --- reading ----------------------------------------------------------------------------------------------


def _read_sharded(index: Path) -> Checkpoint:
    names, entry = sharded.read_index(index)
    tensors: dict[str, Tensor] = {}
    for shard, wanted in names.items():
        _, found = _tensors(index.with_name(shard))
        if missing := [name for name in wanted if name not in found]:
            raise HotswapError(f"{shard!r} must hold {missing[0]!r}, as {str(index)!r} says, and does not")
        tensors |= {name: found[name] for name in wanted}
    return Checkpoint(index, tensors, _metadata(entry, index))


def _read_safetensors(file: Path) -> Checkpoint:
    metadata, tensors = _tensors(file)
    return Checkpoint(file, tensors, _metadata(metadata.get(_ENTRY), file))


def _tensors(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata of a safetensors file, and its tensors, mapped."""
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
            f"cannot read {str(file)!r}: it is damaged or cut short ({_one_line(error)}); copy or download it again"
        ) from error


def _read_torch(file: Path, *, mapped: bool) -> Checkpoint:
    content = load_torch(file, mapped=mapped)
    entry = dict.get(content, _ENTRY) if isinstance(content, dict) else None
    metadata = _metadata(entry, file)
    state, versions, notes = _unwrapped_state(content, file)
    if why := pickled.why_too_large(state.values(), file):
        raise HotswapError(f"cannot read {str(file)!r}: {why}")
    return Checkpoint(file, state, metadata, () if metadata is not None else notes, versions)


def load_torch(file: Path, *, mapped: bool) -> Any:
    """What torch.save wrote, without running code.

    Args:
        file: it must begin as a zip file or a pickle does, which `mapped` tells apart.
        mapped: whether it is a zip file; tensors are then mapped from it.

    Raises:
        HotswapError: where it is damaged, or would need code, or more memory than it has bytes.
    """
    try:
        why = pickled.why_no_archive(file) if mapped else pickled.why_no_pickle(file)
        if why is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the pickle's age and the like
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise HotswapError(f"cannot read {str(file)!r}: {_torch_reason(error)}") from error
    raise HotswapError(f"cannot read {str(file)!r}: {why}")


def _torch_reason(error: Exception) -> str:
    needed = re.search(r"GLOBAL (\S+)|but got <class '([^']+)'>", str(error))
    if isinstance(error, pickle.UnpicklingError) and needed:
        return (
            f"it holds more than tensors, numbers and text ({clipped(needed[1] or needed[2], 80)}), which could run "
            f"code, and hotswap runs none from a file; {pickled.TAKE_OUT}"
        )
    return (
        f"it is damaged, cut short, or a pickle of more than tensors, which could run code ({type(error).__name__}); "
        "copy or download it again, or save a state_dict with torch.save"
    )


def _unwrapped_state(content: Any, file: Path) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """Dig for the dictionary of tensors in what a training script saved: weights, module versions, notes."""
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
        found = listed(map(repr, content)) if content else "nothing"
        raise HotswapError(f"{str(file)!r} must hold a state_dict, that is tensors by name, got only {found}")
    if all(name.startswith("module.") or name == "n_averaged" for name in state):
        state.pop("n_averaged", None)  # the counter of torch.optim.swa_utils.AveragedModel
    if left := [key for key in content if key not in state]:
        notes.append(f"left aside {len(left)} entries that are no weights: {listed(map(repr, left))}")
    if unusual := [name for name, x in state.items() if _why_unusual(x)]:
        raise HotswapError(
            f"{str(file)!r}: weight {unusual[0]!r} is {_why_unusual(state[unusual[0]])}; save plain tensors"
        )
    return state, _versions(attribute), tuple(notes)


def _versions(attribute: Any) -> dict[str, Any]:
    """What `load_state_dict` wants of the attribute `_metadata`, where it is that and not made up."""
    if type(attribute) not in (dict, OrderedDict):
        return {}
    found: dict[str, Any] = dict(dict.items(attribute))
    return found if all(type(x) is dict for x in found.values()) else {}


def _nesting(content: Mapping[Any, Any], file: Path) -> str | None:
    """The entry that holds the weights; None where they are here."""
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


def _why_unusual(x: Any) -> str | None:
    """None for a plain tensor, else what it is."""
    if type(x) not in (Tensor, nn.Parameter):
        return f"a {type(x).__name__}"
    if x.is_meta:
        return "without values, on the meta device"
    if x.layout != torch.strided or x.is_quantized:
        return "sparse or quantised"
    return None


# --- the hotswap entry ------------------------------------------------------------------------------------


def _to_json(metadata: Metadata) -> str:
    entry = {
        "format_version": FORMAT_VERSION,
        "hotswap": hotswap.__version__,
        "architecture": None if metadata.architecture is None else zoo.recordable(metadata.architecture),
        "plan": None if metadata.plan is None else metadata.plan.to_dict(),
        "learned_scales": {name: [x.item(), _DTYPES[x.dtype]] for name, x in metadata.learned_scales.items()},
        "config": metadata.config,
        "images": metadata.images.to_dict(),
    }
    return json.dumps(entry, allow_nan=False)


def _metadata(entry: Any, file: Path) -> Metadata | None:
    if entry is None:
        return None
    where = f"the hotswap entry of {str(file)!r}"
    if not isinstance(entry, str):
        raise HotswapError(f"{where} must be text, got a {type(entry).__name__}")
    found = _from_json(entry, where)
    version = found.get("format_version") if isinstance(found, Mapping) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise HotswapError(
            f"{str(file)!r} was written by a newer hotswap (format {version}, and this one reads up to "
            f"{FORMAT_VERSION}); pip install --upgrade hotswap"
        )
    kinds = {"hotswap": str, "architecture": str | None, "plan": Mapping | None, "learned_scales": Mapping}
    if isinstance(version, int) and version >= 4:
        kinds["config"] = Mapping | None
    if isinstance(version, int) and version >= 5:
        kinds["images"] = Mapping
    if not isinstance(version, int) or version < 1 or set(found) != {"format_version", *kinds}:
        raise HotswapError(f"{where} is malformed; it was not written by hotswap, or damaged")
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise HotswapError(f"{where}: {name} must not be a {type(found[name]).__name__}")
    scales = {name: _scale(name, x, where) for name, x in found["learned_scales"].items()}
    architecture = found["architecture"]
    if architecture is not None:
        network_names.parse(architecture, typed=False)
    config = found.get("config")
    if config is not None:
        hf.checked(config, f"{where}: config")
    plan = None if found["plan"] is None else _plan(found["plan"], where)
    images = _images(found["images"], where) if "images" in found else Stated()
    return Metadata(architecture, plan, scales, found["hotswap"], config, images)


def _scale(name: str, data: Any, where: str) -> Tensor:
    value, kind = data if isinstance(data, list) and len(data) == 2 else (None, None)
    dtype = next((dtype for dtype, text in _DTYPES.items() if text == kind), None)
    if not (name.endswith(_SCALE) and isinstance(value, float) and math.isfinite(value)) or dtype is None:
        raise HotswapError(f"{where}: learned_scales must hold [number, dtype] by name, got {clipped(repr(data))}")
    return torch.tensor(value, dtype=dtype)


def _images(data: Mapping[str, Any], where: str) -> Stated:
    if set(data) != {"mean", "std", "size"}:
        raise HotswapError(
            f"{where}: images must say mean, std and size, got {listed(map(repr, data)) if data else 'nothing'}"
        )
    try:
        return stated.from_values(data["mean"], data["std"], data["size"])
    except HotswapError as error:
        raise HotswapError(f"{where}: {error}") from error


def _plan(data: Any, where: str) -> Plan:
    try:
        return Plan.from_dict(data)
    except HotswapError as error:
        raise HotswapError(f"{where}: {clipped(str(error))}") from error


def _from_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_int=_small_int)
    except (ValueError, RecursionError) as error:
        raise HotswapError(f"{where} must be JSON ({_one_line(error)})") from error


def _small_int(digits: str) -> int:
    if len(digits) > 15:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


# --- into a network ---------------------------------------------------------------------------------------


def _without(own: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in own.items() if name not in scales}


def _assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load by taking the tensors as they are. Parameters stay the same objects, so that tied ones stay tied."""
    held = [
        (module, name, x)
        for module in model.modules()
        for name, x in (*module._parameters.items(), *module._buffers.items())
        if x is not None
    ]
    model.load_state_dict(state, assign=True)
    for module, name, x in held:
        if (now := getattr(module, name)) is not x:
            x.data = now.data.to(x.device)
            setattr(module, name, x)


def _check_fits(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load into a copy without memory first: `load_state_dict` is the judge, and it knows old versions' names."""
    own = model.state_dict()
    shapes = [
        f"{name} is {list(x.shape)} and must be {list(own[name].shape)}"
        for name, x in state.items()
        if name in own and own[name].shape != x.shape
    ]
    kinds = [
        f"{name} is {x.dtype} and must be {own[name].dtype}"
        for name, x in state.items()
        if name in own and own[name].is_floating_point() != x.is_floating_point()
    ]
    skeleton = _deep_copy(model, {id(x): _without_memory(x) for x in (*model.parameters(), *model.buffers())})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of copying to where nothing is kept
            missing, unexpected = skeleton.load_state_dict(state, strict=False)
    except Exception as error:  # wrong shapes, or whatever a module's own loading makes of wrong names
        if not shapes:
            raise HotswapError(f"{str(path)!r} does not fit the network ({_one_line(error)})") from error
        missing, unexpected = [], []
    problems = (
        ("missing", missing),
        ("not the network's", unexpected),
        ("of another shape", shapes),
        ("of another kind", kinds),
    )
    told = [f"{len(names)} {what} ({listed(names)})" for what, names in problems if names]
    if told:
        raise HotswapError(
            f"the weights in {str(path)!r} do not fit the network: {', '.join(told)}; is this the right architecture?"
        )


def _without_memory(x: Tensor) -> Tensor:
    empty = torch.empty_like(x, device="meta")
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty


def _deep_copy(model: nn.Module, replaced: dict[int, Any] | None = None) -> nn.Module:
    try:
        return deep_copy(model, replaced)
    except Exception as error:  # whatever a user's module does when copied
        raise HotswapError(f"the network cannot be deep-copied ({_one_line(error)})") from error


# --- writing ----------------------------------------------------------------------------------------------


def _recorded(model: nn.Module, architecture: str | None) -> tuple[str | None, Mapping[str, Any] | None]:
    """The name to write for a network, and what transformers needs to build it."""
    named = None if architecture is None else zoo.architecture(architecture)
    if named is not None and not named.startswith(f"{network_names.TRANSFORMERS}:"):
        return named, None
    found = hf.recorded(model)
    if found is None:
        if named is not None:
            raise HotswapError(
                f"architecture {architecture!r} is of transformers, and the network is none of its classes"
            )
        return None, None
    name, config = found
    return f"{network_names.TRANSFORMERS}:{name}", config


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # what torch.compile returns
            model = inner
        else:
            return model


def _separate(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, each alone in its memory, as safetensors needs them."""
    separate: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, x in tensors.items():
        if why := _why_unusual(x):
            raise HotswapError(f"only plain tensors can be saved, and {name!r} of the state_dict is {why}")
        tensor = x.detach().cpu()
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.numel() * tensor.element_size() and storage.data_ptr() not in taken
        if not (tensor.is_contiguous() and alone):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        taken.add(storage.data_ptr())
        separate[name] = tensor
    return separate


# --- text -------------------------------------------------------------------------------------------------


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return clipped(lines[0], 200) if lines else type(error).__name__
