"""The swaps that a search tries: enlargements, or the scores behind them, guided by the image, in a few ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from hotswap.api import convert, plan
from hotswap.errors import HotswapError
from hotswap.measure.calibrate import calibrate
from hotswap.measure.compare import Swapped, swapped_layers
from hotswap.network.names import INPUT
from hotswap.surgery import install
from hotswap.surgery.prepare import sharing_weights
from hotswap.targets.choose_enlargements import RESIZE
from hotswap.targets.enlargement import GuidedResize
from hotswap.targets.guide_spaces import scale_of
from hotswap.targets.output import GUIDED_OUTPUT, Refined, is_output
from hotswap.targets.plan import Plan
from hotswap.targets.verdicts import EVERY
from hotswap.zoo import image_stats
from hotswap.zoo.image_stats import ImageStats

Options = Mapping[str, Any]  # arguments of hotswap.convert
LAST = "last"  # as targets: one enlargement alone, see `_last`
CALIBRATED_ON = 2  # images
STRENGTHS = (0.5, 1.0, 2.0)  # times the scale that `convert` chooses
_WAYS: tuple[Options, ...] = (
    {},
    {"space": "rgb"},
    {"footprint": 2},
    {"footprint": 6},
)  # the first: what it does unasked
FAMILY: tuple[Options, ...] = (
    *({"targets": targets, **way} for targets in (RESIZE, LAST) for way in _WAYS),
    {"targets": GUIDED_OUTPUT},
)


@dataclass(frozen=True)
class Structure:
    """A swapped network that shares the plain one's weights, at the scales that calibration found."""

    options: Options
    network: nn.Module
    plan: Plan
    scales: Mapping[str, float]  # of the guide, by layer

    @property
    def swaps(self) -> tuple[Any, ...]:
        """What is swapped, and how; two of the same differ in nothing but scales."""
        entries = (replace(entry, guide_scale=0.0, deviation=None) for entry in self.plan.entries)
        output = self.plan.output
        return *entries, None if output is None else replace(output, guide_scale=0.0)

    @property
    def targets(self) -> str:
        """The enlargements, or the output, for people."""
        output = () if self.plan.output is None else (self.plan.output.alias,)
        return ", ".join([*(entry.target_alias or entry.name for entry in self.plan.entries), *output])

    @property
    def text(self) -> str:
        """The options beside the targets, for people."""
        return _text(self.options)


@dataclass(frozen=True)
class Candidate:
    """A structure at one strength."""

    structure: Structure
    strength: float

    @property
    def key(self) -> str:
        """What tells it from all others, also in another run of the same search."""
        scales = " ".join(f"{scale:.6g}" for scale in self.scales)
        return f"{self.structure.targets}; {self.structure.text}; {scales}"

    @property
    def scales(self) -> tuple[float, ...]:
        """The scale of each layer's guide."""
        return tuple(scale * self.strength for scale in self.structure.scales.values())

    @property
    def row(self) -> tuple[str, str, str]:
        """Enlargements, options and scales, for tables."""
        return self.structure.targets, self.structure.text, ", ".join(f"{scale:.3g}" for scale in self.scales)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what is swapped, arguments of `hotswap.convert`, and scales."""
        way = self.structure
        options = {name: value if _is_plain(value) else repr(value) for name, value in way.options.items()}
        return {"targets": way.targets, "options": options, "scales": list(self.scales)}

    def at_its_scale(self) -> nn.Module:
        """The structure's network, with each scale of this candidate's strength."""
        for path, layer in _steered(self.structure.network).items():
            scale = self.structure.scales[path] * self.strength
            if isinstance(layer, Refined):
                layer.rescale(scale)
            else:
                layer.guide_scale = scale
        return self.structure.network


def structures(
    model: nn.Module, family: Sequence[Options], data: Sequence[tuple[Any, ...]], stats: ImageStats
) -> tuple[list[Structure], list[str]]:
    """Swap the network in every way of a family.

    Args:
        model: the plain network, which is left as it is.
        family: arguments of `hotswap.convert`; the guide is the image where none is named.
        data: a few inputs; scales that are not named are calibrated on them.
        stats: how images were normalised, which the swapped networks declare.

    Returns:
        The swapped networks, each way once, and notes on ways that cannot be.

    Raises:
        HotswapError: where none can be, or the network is swapped already.
    """
    if install.current_plan(model) is not None:
        raise HotswapError("a search begins with a plain network, and this one is swapped; hotswap.revert it first")
    made: dict[tuple[Any, ...], Structure] = {}
    known = set[tuple[Any, ...]]()
    taken: dict[str, list[str]] = {}
    refused: dict[str, str] = {}  # why not, and the first that it is true of
    for options in family:
        given = {"guide": INPUT, "targets": RESIZE, "example_inputs": data[0]} | dict(options)
        try:
            if given["targets"] == LAST:
                targets = [_last(model, given, taken)]
                given["targets"] = targets[0]
            else:
                targets = _taken(model, given, taken)
            scale = repr(options.get("guide_scale"))  # two that are named are two ways
            key = (*targets, _text(options), scale)
            if key in known:
                continue
            known.add(key)
            network = sharing_weights(model)
            image_stats.put(network, stats)
            if "guide_scale" not in given and image_stats.of(network).mean is None:
                convert(network, inplace=True, **given, calibrate_on=data)
            else:  # measuring takes as long as trying a swap on several images
                convert(network, inplace=True, **given)
                if "guide_scale" not in given and not _at_known_scales(network):
                    calibrate(network, data)
            structure = _structure(options, network)
            made.setdefault((scale, *structure.swaps), structure)
        except HotswapError as error:
            refused.setdefault(str(error), f"targets={options.get('targets', RESIZE)}, {_text(options)}")
    if not made:
        raise HotswapError(f"there is nothing to try: {next(iter(refused), 'the family is empty')}")
    return list(made.values()), [f"not tried: {what} ({why})" for why, what in refused.items()]


def candidates(ways: Sequence[Structure]) -> list[Candidate]:
    """Every way at every strength; a way whose scale was named has that alone."""
    return [
        Candidate(way, strength)
        for way in ways
        for strength in ((1.0,) if "guide_scale" in way.options else STRENGTHS)
    ]


def _at_known_scales(network: nn.Module) -> bool:
    """Whether the image guides all that is swapped, in spaces of known units: then nothing is to be measured."""
    return all(
        isinstance(layer, GuidedResize) and scale_of(layer.swap.space) is not None
        for layer in swapped_layers(network).values()
    )


def _taken(model: nn.Module, given: dict[str, Any], taken: dict[str, list[str]]) -> list[str]:
    """What would be swapped, by aliases or paths; looked up once for ways that do not differ in it."""
    options = {name: given[name] for name in ("targets", "guide", "footprint") if name in given}
    if is_output(options["targets"]):
        return [repr(options["targets"])]
    if (asked := repr(options)) not in taken:
        entries = plan(model, **options, example_inputs=given["example_inputs"], check=False).entries
        taken[asked] = [entry.target_alias or entry.target for entry in entries]
    return taken[asked]


def _last(model: nn.Module, given: dict[str, Any], taken: dict[str, list[str]]) -> str:
    """The last of the enlargements that "resize" takes; where it takes none, of all that can be guided."""
    try:
        return _taken(model, given | {"targets": RESIZE}, taken)[-1]
    except HotswapError:
        return _taken(model, given | {"targets": EVERY}, taken)[-1]


def _structure(options: Options, network: nn.Module) -> Structure:
    swapped = install.current_plan(network)
    assert swapped is not None  # noqa: S101 (it was just converted)
    scales = {path: layer.guide_scale for path, layer in _steered(network).items()}
    return Structure(options, network, swapped, scales)


def _steered(network: nn.Module) -> dict[str, Swapped | Refined]:
    """The layers that an image guides, by what they are called in the plan."""
    output = {layer.entry.name: layer for layer in network.modules() if isinstance(layer, Refined)}
    return {**swapped_layers(network), **output}


def _text(options: Options) -> str:
    shown = {name: value for name, value in options.items() if name not in ("targets", "guide_scale")}
    return ", ".join(f"{name}={value}" for name, value in shown.items()) or "default options"


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)
