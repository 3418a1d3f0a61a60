"""Chooses guide scales from data, and measures means of K, to conserve responses."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hotswap.choices import CONSERVE_MODES
from hotswap.errors import HotswapError
from hotswap.measure.compare import Gap, Swapped, drift_text, plain_copy, run, swapped_layers, visited
from hotswap.network.batches import Batches, Pick, as_batches
from hotswap.network.dry_run import removed_afterwards
from hotswap.network.names import AUTO, INPUT
from hotswap.surgery import install
from hotswap.tables import render
from hotswap.targets import kernels
from hotswap.targets.convolution import SwappedLayer
from hotswap.targets.enlargement import GuidedResize
from hotswap.targets.entries import Swap
from hotswap.targets.forms import AS_IT_IS, Form
from hotswap.targets.guide_spaces import scale_of
from hotswap.targets.output import Refined

# What "auto" is, by docs/evidence.md. Convolutions: more costs them at the swap, and buys nothing after it.
CONVOLUTION_DEVIATION = 0.3
RESIZE_DEVIATION = 0.5  # 0.4 and 0.7 do alike, 0.2 gains a third less
_SAMPLES_PER_CALL = 2**16  # distances kept of one call of one layer, drawn at random: plenty for a mean
_BISECTIONS = 60  # halvings of the logarithm of a scale: far below float32 resolution
_SETTLED = 0.01  # by how much the mean distance may change between two passes that count as the same
_LEAST_MEAN = 1e-6  # of K at a tap: dividing by less would let single pixels explode


@dataclass(frozen=True)
class TargetCalibration:
    """One swapped layer, before and after."""

    path: str
    scale_before: float
    deviation_before: float
    scale: float
    deviation: float
    conserve: str | None  # of a convolution
    tap_means: tuple[float, ...] | None  # of K at each tap, row by row; None unless they are conserved


@dataclass(frozen=True)
class Calibration:
    """The scales that `calibrate` set, and what it measured."""

    wanted: float | str | None  # the deviation, as it was asked for; None where scales were left as they are
    conserve: str | None
    drift: float | None  # afterwards: ||swapped - plain|| / ||plain|| over all outputs; None if not known
    targets: tuple[TargetCalibration, ...]
    why_no_drift: str | None = None  # outputs that vary in size, as those of detectors, or hold none
    notes: tuple[str, ...] = ()  # the space in which the image guides now, where it was chosen here

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"targets": [asdict(target) for target in self.targets]}

    def __str__(self) -> str:
        """A table, one line a swapped layer, then the drift and the notes."""
        rows = [(t.path, t.scale_before, t.deviation_before, t.scale, t.deviation, t.conserve) for t in self.targets]
        columns = ("target", "scale before", "deviation before", "scale", "deviation (mean 1-K)", "conserve")
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join([render(columns, rows), drift_text(self.drift, self.why_no_drift), *notes])


def calibrate(
    model: nn.Module,
    batches: Batches,
    *,
    deviation: float | str | None = AUTO,
    conserve: str | None = "mean",
    inputs: Pick | None = None,
) -> Calibration:
    """Set each swapped layer's guide scale, so that the mean of 1 - K on sample data is `deviation`.

    The mean is over off-centre taps inside the image, and K is as it is before anything is conserved. A few passes
    over the data in evaluation mode; learned scales are set as well. Where a guide is computed from another target,
    there are more passes, until all deviations are reached.

    Where the conversion could not tell how the image that guides enlargements is normalised, the batches do: it
    guides in Lab from now on, at the scale that is good there, and a note says so.

    Args:
        model: a converted network; its scales, and what it conserves, are changed in place.
        batches: as for `verify`. A few: all are kept.
        deviation: the mean to reach, between 0 and 1; "auto" is 0.3 for convolutions and 0.5 for enlargements, see
            docs/evidence.md, and leaves the scale where an image guides in a space whose units are known, as that of
            an output's refinement always does; None leaves all scales, and spaces, as they are.
        conserve: what makes up for K being smaller than 1. "mean" divides it at each tap by its mean there on these
            batches; "window" scales it at every pixel so that its sum over the window is the number of taps inside
            the image; None leaves it, as in the paper.
        inputs: as for `verify`.

    Raises:
        HotswapError: where nothing is swapped, there is no data, or a guide is too flat to reach the deviation;
            the network is then as it was.
    """
    if deviation not in (AUTO, None) and not (isinstance(deviation, int | float) and 0 < deviation < 1):
        raise HotswapError(f"deviation must be between 0 and 1, got {deviation!r}")
    if conserve not in (None, *CONSERVE_MODES):
        raise HotswapError(f"conserve must be one of {', '.join(CONSERVE_MODES)} or None, got {conserve!r}")
    layers = swapped_layers(model)
    convolutions = {path: layer for path, layer in layers.items() if isinstance(layer, SwappedLayer)}
    data = list(as_batches(model, batches, inputs))
    before = {path: layer.swap for path, layer in layers.items()}
    plain, gap, output = plain_copy(model), Gap(), _refinement(model)
    with _as_before_on_failure(layers.values(), output):
        results = [] if output is None else _scale_output(model, output, data, deviation)
        first = last = _measured(model, data)
        notes = () if deviation is None else _choose_spaces(model, layers, data)
        if notes:
            last = _measured(model, data)
        for _ in range(2 * len(layers) + 1):  # scales, then means, of one target after another, at the worst
            previous = last
            if deviation is not None:
                for path, layer in layers.items():
                    if (wanted := _wanted(layer, deviation)) is not None:
                        kernel, guide = layer.swap.kernel, layer.swap.guide
                        layer.guide_scale = _scale_for(path, kernel, guide, last[path], wanted)
            means: dict[str, tuple[float, ...]] = {}
            if conserve == "mean":
                measured = _measured(model, data)
                means = {path: measured[path].tap_means(path) for path in convolutions}
            for path, layer in convolutions.items():
                layer.reset(conserve=conserve, tap_means=means.get(path))
            gap = Gap()
            last = _measured(model, data, plain, gap)
            if all(last[path].same_distances(previous[path]) for path in layers):
                break
    for path, layer in layers.items():
        layer.reset(deviation=last[path].deviation)
    install.record_drift(model, gap.relative)
    for note in notes:
        install.record_note(model, AS_IT_IS, note)
    for path, layer in layers.items():
        old, new = before[path], layer.swap
        conserved = (new.conserve, new.tap_means) if isinstance(new, Swap) else (None, None)
        deviations = (first[path].deviation, last[path].deviation)
        results.append(
            TargetCalibration(path, old.guide_scale, deviations[0], new.guide_scale, deviations[1], *conserved)
        )
    return Calibration(deviation, conserve, gap.relative, tuple(results), gap.why_unknown, notes)


def _choose_spaces(
    model: nn.Module, layers: Mapping[str, Swapped], data: Sequence[tuple[Any, ...]]
) -> tuple[str, ...]:
    """Have the image guide in the default space where the conversion left that open; a note where it does now."""
    plan = install.current_plan(model)
    left_open = plan is not None and any(note.startswith(AS_IT_IS) for note in plan.notes)
    if not left_open or any(record.root_path != path for path, _, record in install.records(model)):
        return ()  # the guide of a part that was converted by itself is no image of these batches
    by_image = {
        path: layer
        for path, layer in layers.items()
        if isinstance(layer, GuidedResize) and layer.swap.guide == (INPUT,) and layer.swap.space is None
    }
    guides = {path: layer.swap.guide for path, layer in by_image.items()}
    spaces, notes = Form().spaces(model, guides, lambda: [batch[0] for batch in data if batch])
    for path, layer in by_image.items():
        if (scale := scale_of(spaces[path])) is None:
            return ()
        layer.reset(space=spaces[path], guide_scale=scale)
    return notes


def _wanted(layer: Swapped, deviation: float | str) -> float | None:
    if not isinstance(deviation, str):
        return deviation
    if isinstance(layer, SwappedLayer):
        return CONVOLUTION_DEVIATION
    return RESIZE_DEVIATION if scale_of(layer.swap.space) is None else None


@contextmanager
def _as_before_on_failure(layers: Iterable[Swapped], output: Refined | None) -> Iterator[None]:
    scales = {} if output is None else {k: x.detach().clone() for k, x in output.state_dict().items()}
    scale = 0.0 if output is None else output.guide_scale
    before = [
        (layer, layer.swap, None if layer.guide_log_scale is None else layer.guide_log_scale.detach().clone())
        for layer in layers
    ]
    try:
        yield
    except BaseException:
        if output is not None:
            output.rescale(scale)
            output.load_state_dict(scales)
        for layer, swap, log_scale in before:
            further = ("conserve", "tap_means") if isinstance(swap, Swap) else ("space",)
            names = ("guide_scale", "deviation", *further)
            layer.reset(**{name: getattr(swap, name) for name in names})
            if layer.guide_log_scale is not None and log_scale is not None:
                layer.guide_log_scale.data.copy_(log_scale)  # to the bit, which its logarithm may not be
        raise


class _Sample(NamedTuple):
    """Squared distances of one call of a layer."""

    distances: Tensor
    taps: int  # how many distances these were drawn from, and so what they weigh


class _Seen:
    """Sums over one pass over the data, for one layer, at off-centre taps inside the image."""

    def __init__(self) -> None:
        self.samples: list[_Sample] = []
        self.distance = 0.0  # the sum over all taps
        self.deviations: Tensor | float = 0.0  # sums over all pixels, by tap: [kh, kw]
        self.counts: Tensor | float = 0

    def add(self, layer: Swapped | Refined, distance: Tensor, counts: Tensor, generator: torch.Generator) -> None:
        batch = distance.shape[0]
        values = distance[:, 0][:, counts].flatten().double().cpu()
        self.distance += values.sum().item()
        deviation = torch.where(counts, layer.deviation(distance)[:, 0], 0)
        self.deviations = self.deviations + deviation.sum((0, 3, 4)).cpu()
        self.counts = self.counts + batch * counts.sum((2, 3)).cpu()
        taps = values.numel()
        if taps > _SAMPLES_PER_CALL:
            values = values[torch.randint(taps, (_SAMPLES_PER_CALL,), generator=generator)]
        self.samples.append(_Sample(values, taps))

    @property
    def deviation(self) -> float:
        """The mean of 1 - K."""
        deviations, counts = torch.as_tensor(self.deviations), torch.as_tensor(self.counts)
        return (deviations.sum() / counts.sum().clamp_min(1)).item()

    def tap_means(self, path: str) -> tuple[float, ...]:
        """The mean of K at each tap, row by row; 1 at the centre, and where a tap is never inside the image."""
        deviations, counts = torch.as_tensor(self.deviations), torch.as_tensor(self.counts)
        means = (1 - deviations / counts.clamp_min(1)).flatten().tolist()
        if min(means) < _LEAST_MEAN:
            raise HotswapError(
                f"the mean of K is {min(means):.2g} at a tap of target {path!r}, too small to be conserved; "
                "ask for a smaller deviation"
            )
        return tuple(means)

    def same_distances(self, other: "_Seen") -> bool:
        """Whether the guide is as it was in another pass: it is, unless other targets have a part in it."""
        return math.isclose(self.distance, other.distance, rel_tol=_SETTLED)


def _measured(
    model: nn.Module, data: Sequence[tuple[Any, ...]], plain: nn.Module | None = None, gap: Gap | None = None
) -> dict[str, _Seen]:
    """Run the data through the network; with `plain`, also through that plain network, and fill `gap`."""
    seen = {path: _Seen() for path in swapped_layers(model)}
    generator = torch.Generator().manual_seed(0)  # the same taps in every pass

    def visit(path: str, layer: Swapped, distance: Tensor, counts: Tensor) -> None:
        seen[path].add(layer, distance, counts, generator)

    with visited(model, visit):
        for arguments in data:
            output = run(model, arguments)
            if plain is not None and gap is not None:
                gap.add(run(plain, arguments), output)
    for path, values in seen.items():
        if not values.samples:
            raise HotswapError(f"target {path!r} was not called on these batches, so it cannot be calibrated")
        if not math.isfinite(values.distance):
            raise HotswapError(f"the guide of target {path!r} has values that are not finite on these batches")
    return seen


def _mean(samples: Sequence[_Sample], value: Callable[[Tensor], Tensor]) -> float:
    total = sum(sample.taps * value(sample.distances).mean().item() for sample in samples if sample.taps)
    return total / max(1, sum(sample.taps for sample in samples))


def _refinement(model: nn.Module) -> Refined | None:
    layers = [module for module in model.modules() if isinstance(module, Refined)]
    return layers[0] if layers else None


def _scale_output(
    model: nn.Module, layer: Refined, data: Sequence[tuple[Any, ...]], wanted: float | str | None
) -> list[TargetCalibration]:
    """Set the scale of an output's refinement where a deviation is asked for by number, as its units are known."""
    if wanted is None or isinstance(wanted, str):
        return []
    seen, generator, path = _Seen(), torch.Generator().manual_seed(0), layer.entry.name

    def measure(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) == 2:  # with the image
            for distance, counts in layer.measured(*arguments):
                seen.add(layer, distance, counts, generator)

    with removed_afterwards([layer.register_forward_pre_hook(measure)]):
        for arguments in data:
            run(model, arguments)
    old, deviation = layer.guide_scale, seen.deviation
    layer.rescale(_scale_for(path, kernels.DEFAULT_KERNEL, (INPUT,), seen, wanted))
    return [TargetCalibration(path, old, deviation, layer.guide_scale, float(wanted), None, None)]


def _scale_for(path: str, kernel: str, guide: Sequence[str], seen: _Seen, wanted: float) -> float:
    function = kernels.parse(kernel)

    def deviation(log_scale: float) -> float:
        return _mean(seen.samples, lambda distances: kernels.deviation(distances * math.exp(2 * log_scale), function))

    if not any(sample.taps for sample in seen.samples):
        raise HotswapError(
            f"target {path!r} has no neighbours on these batches: they are empty, or all its taps but the centre lie "
            "outside its input; give larger inputs, or leave this target out"
        )
    varying = _mean(seen.samples, lambda distances: (distances > 0).double())
    if varying == 0:
        guides = ", ".join(map(repr, guide))
        raise HotswapError(
            f"the guide of target {path!r}, {guides}, is one value all over these batches, so it steers nothing: a "
            "dead layer gives 0 everywhere; choose another guide, or give batches that are not flat"
        )
    if not function.inverse and varying <= wanted:
        raise HotswapError(
            f"the guide of target {path!r} is constant around {1 - varying:.0%} of taps on these batches, so the "
            f"mean of 1 - K cannot reach {wanted:g}; ask for less than {varying:.3g}, or choose "
            "another guide or other batches"
        )
    positive = torch.cat([sample.distances[sample.distances > 0] for sample in seen.samples])
    # K is what it is at distance 0 at the low end, and as far from it as it gets at the high one, for every distance.
    low, high = math.log(1e-10) - positive.max().log().item() / 2, math.log(1e2) - positive.min().log().item() / 2
    if deviation(high) <= wanted:
        raise HotswapError(
            f"the mean of 1 - K of target {path!r} reaches {deviation(high):.3g} on these batches with kernel "
            f"{kernel!r}, not {wanted:g}; choose another kernel, guide or deviation"
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if deviation(middle) < wanted:
            low = middle
        else:
            high = middle
    return math.exp(high)
