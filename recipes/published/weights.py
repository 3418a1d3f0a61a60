"""Published weights as our networks have them: names, shapes, and what is turned round."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hotswap.errors import HotswapError
from recipes.published.network import Network, Shapes, difference, our_name

AS_IT_WAS = "as it was"
_UNUSED = "left aside: the network ends in F.interpolate and does not use it"
_FILLED = "not in the file: a constant of the network"
_UNARY_WEIGHT, _MESSENGER = (
    re.compile(r"crf\.(.*\.)?unary_weight"),
    re.compile(r"crf\.(.*\.)?messengers\.\d+\.weight"),
)


@dataclass(frozen=True)
class Change:
    """What became of a weight."""

    published: str | None  # its name there; None where the file has none
    here: str | None  # its name here; None where the network has none
    shape: tuple[int, ...]  # in the file, else here
    what: str


def _mirrored(x: Tensor) -> Tensor:
    return x.flip(2, 3)


def _scale(x: Tensor) -> Tensor:
    return x.flip(0) if x.shape == (3,) else x.reshape(()) if x.numel() == 1 else x


# Weights by our names, what is done to them, and why.
_RULES: tuple[tuple[re.Pattern[str], Callable[[Tensor], Tensor], str], ...] = (
    (
        re.compile(r"up_convts\.\d+\.weight"),
        _mirrored,
        "mirrored: the published layer correlates, nn.ConvTranspose2d convolves",
    ),
    (re.compile(r"(backbone\.)?conv1_1\.weight"), lambda x: x.flip(1), "its colours turned round: BGR to RGB"),
    (re.compile(r"feat_scales\.\d+"), _scale, "its colours turned round: BGR to RGB"),
)


def converted(
    weights: Mapping[str, Tensor], network: Network, expected: Shapes, file: Path
) -> tuple[dict[str, Tensor], tuple[Change, ...]]:
    """Weights under our names, for our network, and what became of each.

    Args:
        weights: under the published names, without a wrapper's prefix.
        network: what they were recognised as.
        expected: names and shapes of our network's weights.
        file: named in errors.

    Raises:
        HotswapError: where weights are left over, missing or of another shape.
    """
    ours: dict[str, Tensor] = {}
    changes = []
    unused = f"{network.swapped or ''}upscore8.weight"
    for published, x in weights.items():
        shape = tuple(x.shape)
        if published == unused and unused not in expected:
            changes.append(Change(published, None, shape, _UNUSED))
            continue
        here = network.names.get(published) or our_name(published)
        ours[here], what = _converted(here, x)
        changes.append(Change(published, here, shape, what))
    filled = [name for name in expected if name not in ours and _is_constant(name, network, expected[name])]
    shapes: dict[str, tuple[int, ...]] = {name: tuple(x.shape) for name, x in ours.items()}
    shapes |= {name: expected[name] for name in filled}
    if told := difference(shapes, expected):
        raise HotswapError(
            f"{str(file)!r} looks like {network.name} of the published code and does not fit it: {told}"
        )
    changes += [Change(None, name, expected[name], _FILLED) for name in filled]
    return ours, tuple(changes)


def _is_constant(here: str, network: Network, shape: tuple[int, ...]) -> bool:
    """Whether a weight is not learned in the network, and the same wherever it is built."""
    if _UNARY_WEIGHT.fullmatch(here):
        return bool(network.options.get("fixed_weighting", False))
    shared = shape[:2] == (1, 1)
    return shared and _MESSENGER.fullmatch(here) is not None and network.options.get("spatial_filter") is False


def _converted(here: str, x: Tensor) -> tuple[Tensor, str]:
    for pattern, rule, what in _RULES:
        if pattern.fullmatch(here):
            y = rule(x)
            if y.shape != x.shape:
                return y, f"{list(x.shape)} became {list(y.shape)}"
            return y, what if x.dim() else AS_IT_WAS
    return x, AS_IT_WAS
