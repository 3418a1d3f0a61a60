"""Networks and data for commands. Imports torch: commands import this module when they run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hotswap.api import revert
from hotswap.checkpoint.load import load_checkpoint, load_weights
from hotswap.checkpoint.read import read
from hotswap.cli import output
from hotswap.cli.options import ImageOptions, Size
from hotswap.errors import HotswapError, one_line
from hotswap.files import image_files
from hotswap.network.dry_run import observe
from hotswap.surgery import install
from hotswap.zoo import images, names, providers

_BATCH_SIZE = 4
_NOISE_BATCHES = 2


def pinned(model: str) -> str:
    """The name that the user typed. A model on the hub is pinned to its present commit, with a note that says so."""
    name, notes = providers.pinned(model)
    for text in notes:
        output.note(text)
    return name


def build(model: str, *, initialise: bool = False) -> nn.Module:
    """Build the network that the user typed; modules in the current folder can be named too, as with `python -m`."""
    if names.parse(model).is_factory and (here := os.getcwd()) not in sys.path:  # noqa: PTH109 (sys.path holds text)
        sys.path.insert(0, here)
    return providers.build(model, trusted=True, initialise=initialise)


def load_plain_weights(network: nn.Module, weights: str) -> None:
    """Load a checkpoint of the plain network, in place.

    Raises:
        HotswapError: where it does not fit, or is of a swapped network.
    """
    saved = read(weights)
    if saved.metadata is not None and saved.metadata.plan is not None:
        raise HotswapError(f"{weights!r} holds a swapped network already; `hotswap revert` it first")
    for text in (*saved.notes, *load_weights(network, saved, mapped=True)):
        output.note(text)


def load(path: str, model: str | None, size: Size | None = None) -> tuple[nn.Module, str | None]:
    """The network of a checkpoint, built from the file's architecture or from `model`, which the user typed.

    Also returns the name to record when it is saved again. `size` is that of the image for a dry run, where the user
    named one.
    """
    model = None if model is None else pinned(model)
    saved = read(path)
    plain = None if model is None else build(model)
    network, notes = load_checkpoint(saved, plain, inplace=True, example_of=lambda x: example(x, size))
    for text in (*saved.notes, *notes):
        output.note(text)
    if model is not None:
        return network, recordable(model)
    return network, None if saved.metadata is None else saved.metadata.architecture


def recordable(model: str) -> str | None:
    """The network's name to write into its file; None, with a note, where a file may not hold it."""
    try:
        return providers.architecture(model)
    except HotswapError:
        output.note(
            f"the file will not name its network, as a file may not ask for {model}; later, pass it as --model"
        )
        return None


def example(network: nn.Module, size: Size | None) -> Tensor | None:
    """An input for dry runs; None where the user named no size, so that the library chooses."""
    return None if size is None else _empty(network, size)


@dataclass(frozen=True)
class Data:
    """Batches for a network, and what they are, in words."""

    batches: Iterator[Tensor]
    description: str


def data(network: nn.Module, folder: str | None, given: ImageOptions, what: str) -> Data:
    """The images in a folder; without one noise, always the same. `what` is the caption of the progress bar."""
    form = images.form_for(network, given.input_size, given.mean, given.std)
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        several = 2 if _takes(network, torch.empty(2, *form.shape, dtype=form.dtype)) else 1
        noise = (torch.randn(several, *form.shape, generator=generator).to(form.dtype) for _ in range(_NOISE_BATCHES))
        return Data(output.with_progress(noise, _NOISE_BATCHES, what), "random noise (seed 0)")
    files = image_files.find(folder, given.limit)
    batch_size = _BATCH_SIZE if _takes(network, torch.empty(_BATCH_SIZE, *form.shape, dtype=form.dtype)) else 1
    batches = images.batches(files, form, batch_size)
    total = -(-len(files) // batch_size)
    return Data(output.with_progress(batches, total, what), f"{len(files)} images from {folder}")


def _takes(network: nn.Module, batch: Tensor) -> bool:
    """Whether a network takes a whole batch; a network imported from ONNX may take one image at a time.

    Where it does not take one image either, the size is wrong, which is reported when it runs.
    """
    try:
        observe(network, batch)
    except HotswapError:
        try:
            observe(network, batch[:1])
        except HotswapError:
            return True
        return False
    return True


@contextmanager
def explained(network: nn.Module, size: Size | None) -> Iterator[None]:
    """Around runs of a swapped network on real data: explain errors of networks that do not take such inputs.

    Raises:
        HotswapError: where the run failed, and the plain network fails on any input of that size.
    """
    try:
        yield
    except HotswapError:
        raise
    except Exception as error:
        dtypes = sorted({str(x.dtype).removeprefix("torch.") for x in network.parameters() if x.is_floating_point()})
        if isinstance(error, RuntimeError | TypeError) and (len(dtypes) > 1 or dtypes[0].startswith("float8")):
            raise HotswapError(
                f"the network cannot be run with its weights in {', '.join(dtypes)} ({one_line(error)}); bring "
                "them to one dtype that convolutions take, such as float32"
            ) from error
        try:
            plain = network if install.current_plan(network) is None else revert(network)
            observe(plain, _empty(network, size))
        except HotswapError as why:
            raise HotswapError(f"{why} (on the command line: --input-size)") from why
        raise


def _empty(network: nn.Module, size: Size | None) -> Tensor:
    form = images.form_for(network, size)
    return torch.empty(1, *form.shape, dtype=form.dtype, device="meta")
