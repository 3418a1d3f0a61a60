"""Published networks of joint upsampling, told by names and shapes of their weights, or by shapes and order alone."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from hotswap.errors import HotswapError
from hotswap.zoo.image_stats import ImageStats
from recipes.networks.pac_upsampling import FACTORS
from recipes.protocols import PUBLISHED
from recipes.published.network import BY_WEIGHTS, Network, Shapes, difference, our_name

_EVALUATE = "hotswap evaluate joint_depth"
_IMAGES = ImageStats(protocol=PUBLISHED)
_FLOW = "its weights do not tell depth from flow: for Sintel's the recipes are joint_flow_..."
_BRANCHES = ("branch_t.", "branch_g.", "branch_f.", "branch_joint.", "up_convts.")


def recognise(found: Shapes, file: Path) -> Network | None:
    """The network of joint upsampling that weights are of; None where nothing looks like it.

    Raises:
        HotswapError: where they look like one, and do not fit it.
    """
    named = {our_name(name): shape for name, shape in found.items()}
    for network, expected in _networks():
        if named == expected:
            return network
    if any(name.startswith(_BRANCHES) for name in found):
        network, expected = max(_networks(), key=lambda known: len(named.items() & known[1].items()))
        raise HotswapError(
            f"{str(file)!r} looks like {network.name} of the published code and does not fit it: "
            f"{difference(named, expected)}"
        )
    fitting = [
        replace(network, told_by="the shapes and order of its weights; their names are not known", names=names)
        for network, expected in _networks()
        if (names := _by_order(found, expected)) is not None
    ]
    return fitting[0] if len(fitting) == 1 else None


@cache
def _networks() -> tuple[tuple[Network, Shapes], ...]:
    return tuple((network, network.shapes()) for network in _all())


def _all() -> Iterator[Network]:
    for factor in FACTORS:
        for lite in (False, True):
            options = {"factor": factor} | ({"lite": True} if lite else {})
            yield Network(
                f"PacJointUpsample{'Lite' * lite}",
                BY_WEIGHTS,
                "recipes.networks.pac_upsampling",
                "PacUpsampling",
                options,
                f"{_EVALUATE}_pac{'_lite' * lite}_x{factor}",
                _IMAGES,
                notes=(_FLOW,),
            )
    factors = "its weights are the same for every factor: the recipe says which, as in joint_depth_djf_x8"
    yield Network(
        "DJIF",
        BY_WEIGHTS,
        "recipes.networks.djf",
        "DJF",
        {"enlarge": "bilinear"},
        f"{_EVALUATE}_djf_x4",
        _IMAGES,
        notes=(_FLOW, factors),
    )


def _by_order(found: Shapes, expected: Shapes) -> Mapping[str, str] | None:
    """Names of the one by those of the other, where both have the same shapes; those of one shape in their order."""
    ours, theirs = _by_shape(expected), _by_shape(found)
    if {key: len(names) for key, names in ours.items()} != {key: len(names) for key, names in theirs.items()}:
        return None
    return {their: our for key, names in theirs.items() for their, our in zip(names, ours[key], strict=True)}


def _by_shape(shapes: Shapes) -> dict[tuple[str, tuple[int, ...]], list[str]]:
    names: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        names[name.rpartition(".")[2], shape].append(name)
    return names
