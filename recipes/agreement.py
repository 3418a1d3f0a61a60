"""Whether a checkpoint is of what a recipe makes of it, where weights of the same names and shapes do not tell."""

import json
from pathlib import Path
from typing import Any

from hotswap.checkpoint.read import read
from hotswap.zoo.names import Spec, parse
from recipes import building, protocols
from recipes.config import Recipe

# Networks of which the published code's weights fit and, as they are, give something else.
_PUBLISHED = ("recipes.networks.pac_upsampling", "recipes.networks.fcn8s", "recipes.networks.segmentation")
_UNKNOWN = (
    "{!r} was not written by hotswap; if it is of the published code, it fits and gives wrong results as it is: "
    "hotswap migrate brings it here"
)


def differences(recipe: Recipe, checkpoint: str | Path) -> tuple[str, ...]:
    """What to say where a checkpoint is of another protocol, or of a network with other options, than the recipe's.

    Also where it could be one of the published code, which nobody has migrated.

    Raises:
        HotswapError: where the checkpoint cannot be read, or the recipe's network is none.
    """
    metadata = read(checkpoint).metadata
    if metadata is None:
        return (_UNKNOWN.format(str(checkpoint)),) if building.spec(recipe).provider in _PUBLISHED else ()
    told = [_protocols(recipe, metadata.images.protocol)]
    if metadata.architecture is not None:
        told.append(_options(recipe, parse(metadata.architecture, typed=False)))
    return tuple(f"{str(checkpoint)!r} is of {why}" for why in told if why is not None)


def _protocols(recipe: Recipe, before: str | None) -> str | None:
    now, data_set = building.protocol(recipe), recipe.data.validation.name
    if before is None or before == now or data_set not in protocols.KNOWN:
        return None
    put_right = f"--set protocol={before}" if before in protocols.KNOWN[data_set] else "a recipe of its own data"
    by = "none that has a name" if now is None else repr(now)
    return (
        f"the protocol {before!r}, and this recipe prepares its data by {by}: their figures must not be compared; "
        f"{put_right} is the checkpoint's"
    )


def _options(recipe: Recipe, before: Spec) -> str | None:
    """Of a factory of the same name. Options that are None by default name files of weights and the like."""
    now = building.spec(recipe)
    if (now.provider, now.name) != (before.provider, before.name):
        return None
    usual = {key: value for key, value in building.usual_options(recipe).items() if value is not None}
    ours, theirs = ({key: _as_json(spec.options.get(key, usual[key])) for key in usual} for spec in (now, before))
    for key in usual:
        if ours[key] != theirs[key]:
            return (
                f"a network whose option {key} is {theirs[key]}, and in this recipe it is {ours[key]}: the weights "
                f"fit and are not meant for it; --set model.options.{key}={theirs[key]} is the checkpoint's"
            )
    return None


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)
