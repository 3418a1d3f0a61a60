"""Writes checkpoints, in one step.

Written are `.safetensors`, with a JSON entry `hotswap` in the metadata (in parts, with an index, where that is asked
for), and `.pt`/`.pth`, which hold `{"state_dict": tensors, "hotswap": the same JSON}`. The tensors are the plain
network's, under its names: what swaps learn goes into the JSON, so that a loader that knows nothing of hotswap reads
the original network's weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hotswap.checkpoint.metadata import ENTRY, Metadata, to_json
from hotswap.checkpoint.read import why_unusual
from hotswap.errors import HotswapError, first_line
from hotswap.files import shards
from hotswap.files.atomic import PathLike, atomic_write
from hotswap.files.destinations import SAFETENSORS, check_checkpoint, suffix
from hotswap.surgery import install
from hotswap.targets.guided_layer import is_learned
from hotswap.zoo import image_stats, providers, transformers
from hotswap.zoo.names import TRANSFORMERS


def save(
    model: nn.Module, path: PathLike, architecture: str | None = None, *, max_shard_size: int | str | None = None
) -> None:
    """Write a network, swapped or plain, to `.safetensors`, `.pt` or `.pth`, in one step.

    Args:
        model: the network; one wrapped by `torch.compile`, DataParallel or DistributedDataParallel is unwrapped.
        path: where to; an existing file is replaced.
        architecture: the network's name for `providers.build`, so that `load` can build it. Options that fetch
            weights are left out. A `package.module:factory` is recorded for people to read, but `load` will not call
            it. Networks of transformers need no name: their class and configuration are recorded.
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
    scales = {} if plan is None else {name: x for name, x in state.items() if is_learned(name)}
    architecture, config = _recorded(model, architecture)
    metadata = Metadata(architecture, plan, scales, config=config, images=image_stats.of(model))
    write({name: x for name, x in state.items() if name not in scales}, path, metadata, max_shard_size)


def write(
    tensors: Mapping[str, Any], path: PathLike, metadata: Metadata, max_shard_size: int | str | None = None
) -> None:
    """Write a state_dict and its metadata in one step; see `save`.

    Raises:
        HotswapError: as `save`.
    """
    check_checkpoint(path, max_shard_size)
    plain = _separate(tensors)
    entry = to_json(metadata)
    parts = [plain] if max_shard_size is None else shards.split(plain, shards.parse_size(max_shard_size))
    try:
        if len(parts) > 1:
            shards.write(parts, Path(path), entry)
            return
        with atomic_write(path) as temporary:
            if suffix(path) in SAFETENSORS:
                save_file(plain, temporary, {"format": "pt", ENTRY: entry})
            else:
                with temporary.open("wb") as stream:  # a stream, because torch writes a file's name into the file
                    torch.save({"state_dict": plain, ENTRY: entry}, stream)
    except KeyError as error:
        raise HotswapError(f"a safetensors file cannot hold {error.args[0]}; write a .pt file") from error
    except SafetensorError as error:  # a full disk
        raise HotswapError(f"cannot write {str(path)!r}: {first_line(error)}") from error
    except RuntimeError as error:  # torch's, raised while it handles the error of a full disk
        raise HotswapError(f"cannot write {str(path)!r}: {first_line(error.__context__ or error)}") from error


def _recorded(model: nn.Module, architecture: str | None) -> tuple[str | None, Mapping[str, Any] | None]:
    """The name to record for a network, and the configuration that transformers needs to build it."""
    named = None if architecture is None else providers.architecture(architecture)
    if named is not None and not named.startswith(f"{TRANSFORMERS}:"):
        return named, None
    recorded = transformers.recorded(model)
    if recorded is None:
        if named is not None:
            raise HotswapError(
                f"architecture {architecture!r} is of transformers, and the network is none of its classes"
            )
        return None, None
    name, config = recorded
    return f"{TRANSFORMERS}:{name}", config


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # what torch.compile returns
            model = inner
        else:
            return model


def _separate(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, each with a storage of its own, as safetensors needs them."""
    separate: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, x in tensors.items():
        if why := why_unusual(x):
            raise HotswapError(f"only plain tensors can be saved, and {name!r} of the state_dict is {why}")
        tensor = x.detach().cpu()
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.numel() * tensor.element_size() and storage.data_ptr() not in taken
        if not (tensor.is_contiguous() and alone):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        taken.add(storage.data_ptr())
        separate[name] = tensor
    return separate
