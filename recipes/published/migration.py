"""From a checkpoint of the published code to our network, and to a checkpoint of ours."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

import hotswap
from hotswap.checkpoint.load import load_weights
from hotswap.checkpoint.read import read
from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike
from hotswap.files.destinations import check_checkpoint
from hotswap.files.weight_names import wrapper
from hotswap.tables import render
from hotswap.zoo import image_stats
from recipes.protocols import PUBLISHED
from recipes.published.recognise import recognise
from recipes.published.weights import AS_IT_WAS, Change, converted

_SWAPPED = ("conv3_3", "conv4_3", "conv5_3")  # as in the paper, with its guide and scale
_GUIDE, _GUIDE_SCALE = "conv2_2", 1e-4


@dataclass(frozen=True)
class Migration:
    """What was made of a checkpoint."""

    source: str
    network: str  # the published code's name
    told_by: str
    architecture: str  # ours
    protocol: str  # of its data
    changes: tuple[Change, ...]
    swapped: tuple[str, ...]
    notes: tuple[str, ...]
    command: str  # that evaluates it

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """What it is, the weights that changed, and how to go on."""
        shown = [change for change in self.changes if change.published != change.here or change.what != AS_IT_WAS]
        rows = [(c.published or "-", c.here or "-", "x".join(map(str, c.shape)) or "[]", c.what) for c in shown]
        lines = [f"{self.source}: {self.network} of the published code, told by {self.told_by}"]
        lines += [render(("published", "here", "shape", "what"), rows)] if rows else []
        if same := len(self.changes) - len(shown):
            lines.append(f"{same} weights as they were")
        lines += [f"swapped again: {', '.join(self.swapped)}, guided by {_GUIDE}"] if self.swapped else []
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"network: {self.architecture}", f"protocol of its data: {self.protocol}"]
        return "\n".join([*lines, f"to evaluate it: {self.command}"])


def load(path: PathLike, *, model: str | None = None, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Our network with the weights of a checkpoint of the published code; it is in training mode, as built.

    A network of segmentation takes images in RGB, (image - mean) / std with `hotswap.zoo.image_stats.of(network)`:
    its weights of colours are turned round. Hot-swapped convolutions are swapped.

    Args:
        path: a file of the published code, of any version of torch.save. No code in it is run.
        model: what the published code's --model was, such as "fcn8spac_crfi5p4d5641p4d5161"; needed where weights do
            not tell, of FCN-8s and what is made from it, unless the file has the name that the published page gives
            it.
        options: options of our network, in place of what was told, such as {"blur": 2}.

    Raises:
        HotswapError: where it cannot be read, or holds no network that is known.
    """
    return _migrated(path, model, options)[0]


def migrate(
    path: PathLike, output: PathLike, *, model: str | None = None, options: Mapping[str, Any] | None = None
) -> Migration:
    """Write a checkpoint of the published code as one of ours, for `hotswap.load` and the recipes' commands.

    Args:
        path: see `load`.
        output: what to write: .safetensors, .pt or .pth.
        model: see `load`.
        options: see `load`.

    Returns:
        What was done.

    Raises:
        HotswapError: as `load`, or where `output` cannot be written.
    """
    check_checkpoint(output)
    network, migration = _migrated(path, model, options)
    hotswap.save(network, output, migration.architecture)
    return replace(migration, command=f"{migration.command} --checkpoint {shlex.quote(str(output))}")


def _migrated(path: PathLike, model: str | None, options: Mapping[str, Any] | None) -> tuple[nn.Module, Migration]:
    checkpoint = read(path)
    if checkpoint.metadata is not None:
        raise HotswapError(f"{str(path)!r} is a checkpoint of hotswap already")
    weights, notes = checkpoint.state_dict, list(checkpoint.notes)
    while (prefix := wrapper(weights)) is not None:
        weights = {name.removeprefix(prefix): x for name, x in weights.items()}
        notes.append(f"took the prefix {prefix!r} off all names")
    known = recognise(weights, checkpoint.path, model, dict(options or {}))
    ours, changes = converted(weights, known, known.shapes(), checkpoint.path)
    network = known.build()
    load_weights(network, replace(checkpoint, state_dict=network.state_dict() | ours, versions={}))
    swapped: tuple[str, ...] = ()
    if known.swapped is not None:
        swapped = tuple(known.swapped + name for name in _SWAPPED)
        hotswap.convert(
            network,
            list(swapped),
            guide=known.swapped + _GUIDE,
            guide_scale=_GUIDE_SCALE,
            example_inputs=torch.zeros(1, 3, 64, 64),
            inplace=True,
        )
    image_stats.put(network, known.images)
    told = Migration(
        str(path),
        known.name,
        known.told_by,
        known.architecture,
        PUBLISHED,
        changes,
        swapped,
        (*notes, *known.notes),
        known.command,
    )
    return network, told
