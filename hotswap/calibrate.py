"""Chooses guide scales from data."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hotswap.errors import HotswapError
from hotswap.layers import SwappedConv2d
from hotswap.measure import as_batches, swapped_layers, visited
from hotswap.observe import Inputs, mode
from hotswap.tables import render

DEFAULT_DEVIATION = 0.3  # kept a network's score in the first pilots; larger shrinks responses too much
_SAMPLES_PER_CALL = 2**16  # distances kept of one call of one layer, drawn at random: plenty for a mean
_BISECTIONS = 60  # halvings of the logarithm of a scale: far below float32 resolution


@dataclass(frozen=True)
class TargetCalibration:
    """One swapped layer's scale, before and after."""

    path: str
    scale_before: float
    deviation_before: float
    scale: float
    deviation: float


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` measured and set."""

    wanted: float
    targets: tuple[TargetCalibration, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"wanted": self.wanted, "targets": [asdict(target) for target in self.targets]}

    def __str__(self) -> str:
        """A table, one line a swapped layer."""
        rows = [(t.path, t.scale_before, t.deviation_before, t.scale, t.deviation) for t in self.targets]
        return render(("target", "scale before", "deviation before", "scale", "deviation (mean 1-K)"), rows)


def calibrate(
    model: nn.Module, batches: Iterable[Inputs] | Tensor, *, deviation: float = DEFAULT_DEVIATION
) -> Calibration:
    """Set each swapped layer's guide scale, so that the mean of 1 - K on sample data is `deviation`.

    The mean is over off-centre taps inside the image, where K = exp(-s^2/2 ||f_i - f_j||^2). One pass over the
    data in evaluation mode; then each scale is found by bisection. Learned scales are set as well.

    Args:
        model: a converted network; its scales are changed, in place, once all are found.
        batches: inputs, each a tensor or a tuple of arguments; a lone tensor is one batch.
        deviation: the mean to reach, between 0 and 1.

    Raises:
        HotswapError: where nothing is swapped, there is no data, or a guide is too flat to reach the deviation;
            no scale is changed then.
    """
    if not (isinstance(deviation, int | float) and 0 < deviation < 1):
        raise HotswapError(f"deviation must be between 0 and 1, got {deviation!r}")
    layers = swapped_layers(model)
    samples: dict[str, list[_Sample]] = {path: [] for path in layers}
    generator = torch.Generator().manual_seed(0)

    def visit(path: str, _layer: SwappedConv2d, distance: Tensor, counts: Tensor) -> None:
        values = distance[:, 0][:, counts].flatten().double().cpu()
        taps = values.numel()
        if taps > _SAMPLES_PER_CALL:
            values = values[torch.randint(taps, (_SAMPLES_PER_CALL,), generator=generator)]
        samples[path].append(_Sample(values, taps))

    with mode(model, training=False), visited(model, visit), torch.no_grad():
        for arguments in as_batches(batches):
            model(*arguments)
    results = []
    for path, layer in layers.items():
        seen = samples[path]
        if not seen:
            raise HotswapError(f"target {path!r} was not called on these batches, so it cannot be calibrated")
        before, scale = layer.guide_scale, _scale_for(path, seen, deviation)
        results.append(TargetCalibration(path, before, _deviation(seen, before), scale, _deviation(seen, scale)))
    for result in results:
        layers[result.path].guide_scale = result.scale
    return Calibration(deviation, tuple(results))


class _Sample(NamedTuple):
    """Squared distances of one call of a layer."""

    distances: Tensor
    taps: int  # how many distances these were drawn from, and so what they weigh


def _mean(samples: Sequence[_Sample], value: Callable[[Tensor], Tensor]) -> float:
    total = sum(sample.taps * value(sample.distances).mean().item() for sample in samples if sample.taps)
    return total / max(1, sum(sample.taps for sample in samples))


def _deviation(samples: Sequence[_Sample], scale: float) -> float:
    return _mean(samples, lambda distances: -torch.expm1(distances * (-0.5 * scale**2)))


def _scale_for(path: str, samples: Sequence[_Sample], deviation: float) -> float:
    if not all(bool(torch.isfinite(sample.distances).all()) for sample in samples):
        raise HotswapError(f"the guide of target {path!r} has values that are not finite on these batches")
    reachable = _mean(samples, lambda distances: (distances > 0).double())
    if reachable <= deviation:
        raise HotswapError(
            f"the guide of target {path!r} is constant around {1 - reachable:.0%} of taps on these batches, so the "
            f"mean of 1 - K cannot reach {deviation:g}; ask for less than {reachable:.3g}, or choose another guide"
        )
    positive = torch.cat([sample.distances[sample.distances > 0] for sample in samples])
    # exp(-s^2 d / 2) is 1 to float64 at the low end and 0 at the high one, for every distance seen.
    low, high = math.log(1e-10) - positive.max().log().item() / 2, math.log(1e2) - positive.min().log().item() / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _deviation(samples, math.exp(middle)) < deviation:
            low = middle
        else:
            high = middle
    return math.exp(high)
