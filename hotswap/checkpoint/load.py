"""Loads a checkpoint into a network."""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hotswap.api import apply, check_swapped
from hotswap.checkpoint.read import Checkpoint, read
from hotswap.errors import HotswapError, first_line
from hotswap.files.atomic import PathLike
from hotswap.files.weight_names import listed, matched
from hotswap.network.copying import checked_copy
from hotswap.network.dry_run import Inputs
from hotswap.targets.guided_layer import is_learned
from hotswap.zoo import image_stats, providers, transformers
from hotswap.zoo.image_stats import ImageStats
from hotswap.zoo.trust import SizeLimit

# Bytes that a network may take beside its weights, in float32 where the file has them in half precision.
_SPARE = 1 << 29
_log = logging.getLogger("hotswap.checkpoint")


def load(
    path: PathLike, model: nn.Module | None = None, *, example_inputs: Inputs | None = None, check: bool = True
) -> nn.Module:
    """Load a network, with its swaps and weights; it is in training mode, as built.

    Args:
        path: a file that `save` wrote, or, with `model`, any checkpoint of that network; or a model on the hub,
            `hf-hub:owner/name[@revision]`: which commit it is of is logged.
        model: the plain network, where the file names none, or a network of the user. It is not changed: the result
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
    """As `load`, for a checkpoint that has been read; also returns notes.

    With `inplace`, `model` itself is changed, and the weights stay mapped from the file. `example_of` makes example
    inputs for the plain network.

    Raises:
        HotswapError: as `load`.
    """
    metadata = checkpoint.metadata
    if model is not None:
        loaded = model if inplace else checked_copy(model)
    elif metadata is not None and metadata.architecture is not None:
        weights = checkpoint.state_dict.values()
        limit = SizeLimit(2 * sum(x.nbytes for x in weights) + _SPARE, len(weights))
        loaded = providers.build(
            metadata.architecture, trusted=False, initialise=False, config=metadata.config, limit=limit
        )
    else:
        raise HotswapError(
            f"{str(checkpoint.path)!r} does not say which network its weights belong to; build the plain network and "
            "pass it as model (on the command line: --model)"
        )
    if metadata is not None and (model is None or image_stats.of(model) == ImageStats()):
        image_stats.put(loaded, metadata.images)
    if example_of is not None:
        example_inputs = example_of(loaded)
    if metadata is not None and metadata.plan is not None:
        apply(loaded, metadata.plan, example_inputs=example_inputs, inplace=True, check=False)
    notes = load_weights(loaded, checkpoint, mapped=inplace)
    if check and metadata is not None and metadata.plan is not None:  # not before the weights are loaded
        notes += check_swapped(loaded, example_inputs)
    return loaded, notes


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, mapped: bool = False) -> tuple[str, ...]:
    """Load a checkpoint's weights into a network: all of them, matched by name and shape.

    Names are brought to the network's: see `weight_names.matched`, and `transformers.renamed` for networks of
    transformers. Floating-point weights take the dtype they have in the file.

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
    current = model.state_dict(keep_vars=True)
    scales = {} if metadata is None else metadata.learned_scales
    try:
        plain = {name: x for name, x in current.items() if name not in scales}
        weights, versions, notes = matched(checkpoint.state_dict, checkpoint.versions, plain)
    except HotswapError as error:
        raise HotswapError(f"cannot take the weights of {str(checkpoint.path)!r}: {error}") from error
    if learned := [name for name in weights if is_learned(name) and name not in current]:
        raise HotswapError(
            f"{str(checkpoint.path)!r} has {len(learned)} parameters that a swap added ({listed(learned)}) and does "
            "not say which swap; hotswap.apply its plan to the network (hotswap.status(swapped).plan) and pass that"
        )
    if (
        weights.keys() | scales.keys() != current.keys()
        and (renamed := transformers.renamed(model, weights)) is not None
    ):
        weights = renamed.weights
        notes += ("the weights have the names that transformers gives them in files",)
        if renamed.unexpected:
            notes += (f"left aside {len(renamed.unexpected)} that the network has not: {listed(renamed.unexpected)}",)
    state = OrderedDict({**weights, **scales})
    if metadata is not None:
        versions = getattr(model.state_dict(), "_metadata", {})  # hotswap's files have the present names
    if versions:
        state._metadata = versions  # type: ignore[attr-defined]  # where load_state_dict looks for them
    _check_fits(model, state, checkpoint.path)
    if mapped:
        _assign(model, state)
        return notes
    for name, tensor in current.items():
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)
    return notes


def _assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Use the tensors themselves as weights. Parameters stay the same objects, so that tied ones stay tied."""
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
    """Try `load_state_dict`, which knows the names of old versions, on a copy without memory."""
    current = model.state_dict()
    shapes = [
        f"{name} is {list(x.shape)} and must be {list(current[name].shape)}"
        for name, x in state.items()
        if name in current and current[name].shape != x.shape
    ]
    kinds = [
        f"{name} is {x.dtype} and must be {current[name].dtype}"
        for name, x in state.items()
        if name in current and current[name].is_floating_point() != x.is_floating_point()
    ]
    skeleton = checked_copy(model, {id(x): _without_memory(x) for x in (*model.parameters(), *model.buffers())})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about copying to the meta device
            missing, unexpected = skeleton.load_state_dict(state, strict=False)
    except Exception as error:  # wrong shapes, or whatever a module's own loading makes of wrong names
        if not shapes:
            raise HotswapError(f"{str(path)!r} does not fit the network ({first_line(error)})") from error
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
