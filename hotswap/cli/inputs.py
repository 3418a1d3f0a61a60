"""Networks and data for commands. Imports torch: commands import this module when they run."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hotswap import checkpoint, images, surgery, zoo
from hotswap.api import revert
from hotswap.cli import output
from hotswap.cli.options import Size
from hotswap.errors import HotswapError
from hotswap.files import is_same_file
from hotswap.observe import default_inputs, observe

_BATCH_SIZE = 4
_NOISE_BATCHES = 2


def build(model: str, *, initialise: bool = False) -> nn.Module:
    """Build the network that the user typed; modules in the current folder can be named too, as with `python -m`."""
    if zoo.parse(model).is_factory and (here := os.getcwd()) not in sys.path:  # noqa: PTH109 (sys.path holds text)
        sys.path.insert(0, here)
    return zoo.build(model, trusted=True, initialise=initialise)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's network, and the name to record when it is saved again."""

    network: nn.Module
    architecture: str | None


def load(path: str, model: str | None) -> Loaded:
    """The network of a checkpoint, built from the file's architecture or from `model`, which the user typed."""
    read = checkpoint.read(path)
    network, notes = checkpoint.load_checkpoint(read, None if model is None else build(model))
    for text in (*read.notes, *notes):
        output.note(text)
    if model is not None:
        return Loaded(network, recordable(model))
    return Loaded(network, None if read.metadata is None else read.metadata.architecture)


def recordable(model: str) -> str | None:
    """The network's name to write into its file; None, with a note, where a file may not hold it."""
    try:
        return zoo.architecture(model)
    except HotswapError:
        output.note(
            f"the file will not name its network, as a file may not ask for {model}; later, pass it as --model"
        )
        return None


def check_other_file(path: str, *inputs: str | None) -> None:
    """Refuse to write over what is being read.

    Raises:
        HotswapError: where `path` is one of the inputs.
    """
    if any(name is not None and is_same_file(path, name) for name in inputs):
        raise HotswapError(f"the output {path!r} is also an input, which it would replace; name another file")


def example(network: nn.Module, size: Size | None) -> Tensor | None:
    """What to observe a network with: None where the user names no size and the library is to choose."""
    return None if size is None else torch.empty(1, *_shape(network, size), dtype=_dtype(network), device="meta")


@dataclass(frozen=True)
class Data:
    """Batches for a network, and what they are, in words."""

    batches: Iterator[Tensor]
    description: str


def data(
    network: nn.Module,
    folder: str | None,
    size: Size | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    limit: int,
    what: str,
) -> Data:
    """The images in a folder, or where there is none noise, always the same."""
    shape, dtype = _shape(network, size), _dtype(network)
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        noise = (torch.randn(2, *shape, generator=generator).to(dtype) for _ in range(_NOISE_BATCHES))
        return Data(output.with_progress(noise, _NOISE_BATCHES, what), "random noise (seed 0)")
    files = images.find(folder, limit)
    own_mean, own_std = (_as_channels(values, shape[0]) for values in zoo.normalisation(network))
    read = images.batches(files, shape, mean or own_mean, std or own_std, _BATCH_SIZE, dtype)
    total = -(-len(files) // _BATCH_SIZE)
    return Data(output.with_progress(read, total, what), f"{len(files)} images from {folder}")


@contextmanager
def explained(network: nn.Module, size: Size | None) -> Iterator[None]:
    """Around runs of a swapped network on real data: tell apart a network that does not take such inputs.

    Raises:
        HotswapError: where the run failed, and the plain network fails on any input of that size.
    """
    try:
        yield
    except HotswapError:
        raise
    except Exception:
        try:
            plain = network if surgery.current_plan(network) is None else revert(network)
            observe(plain, torch.empty(1, *_shape(network, size), dtype=_dtype(network), device="meta"))
        except HotswapError as why:
            raise HotswapError(f"{why} (on the command line: --input-size)") from why
        raise


def _shape(network: nn.Module, size: Size | None) -> tuple[int, int, int]:
    channels, height, width = default_inputs(network)[0].shape[1:]
    return (channels, height, width) if size is None else (size[0] or channels, size[1], size[2])


def _as_channels(values: Sequence[float], channels: int) -> Sequence[float]:
    """What is known of RGB images, for a network that takes grey ones."""
    return values if len(values) == channels else (sum(values) / len(values),)


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
