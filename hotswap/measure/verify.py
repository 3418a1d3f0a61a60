"""How far a swapped network is from its plain self."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from hotswap.measure.compare import Gap, Swapped, drift_text, plain_copy, run, swapped_layers, visited
from hotswap.network.batches import Batches, Pick, as_batches
from hotswap.surgery import install
from hotswap.tables import render
from hotswap.targets.entries import Swap
from hotswap.targets.guided_layer import is_learned
from hotswap.targets.kernels import INERT_DEVIATION, inert_warnings


@dataclass(frozen=True)
class TargetCheck:
    """One swapped layer on the data seen."""

    path: str
    guide_scale: float
    deviation: float  # mean of 1 - K over off-centre taps inside the image
    max_deviation: float  # largest 1 - K there
    inert: bool  # the deviation is below INERT_DEVIATION, or the gate is closed
    gate: tuple[float, ...] = ()  # a of a convolution's 1 + a (K - 1); the deviations are K's


@dataclass(frozen=True)
class Verification:
    """Plain against swapped, in evaluation mode, over all batches."""

    output_max_abs: float | None  # largest |swapped - plain| of any output value
    output_relative: float | None  # the drift: ||swapped - plain|| / ||plain|| over all outputs; None if not known
    same_state: bool  # the state_dict keys and shapes are the plain network's, but for what swaps learn
    targets: tuple[TargetCheck, ...]
    why_no_drift: str | None = None  # outputs that vary in size, as those of detectors, or hold none
    closed_output: str | None = None  # a refinement of the output whose gates are all 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look at, a line each."""
        closed = [check.path for check in self.targets if check.gate and not any(check.gate)]
        closed += [] if self.closed_output is None else [self.closed_output]
        return inert_warnings({check.path: check.deviation for check in self.targets}, closed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"targets": [asdict(t) for t in self.targets], "warnings": list(self.warnings)}

    def __str__(self) -> str:
        """A table, one line a swapped layer, then the outputs and the warnings."""
        rows = [(t.path, t.guide_scale, f"{t.deviation:.3g}", f"{t.max_deviation:.3g}") for t in self.targets]
        columns = ("target", "guide scale", "deviation (mean 1-K)", "max 1-K")
        table = [render(columns, rows)] if rows else []  # none where only the output is refined
        outputs = drift_text(self.output_relative, self.why_no_drift)
        outputs += "" if self.output_max_abs is None else f", largest change {self.output_max_abs:.3g}"
        state = "state_dict: keys and shapes " + ("as the plain network's" if self.same_state else "DIFFER")
        return "\n".join([*table, outputs, state, *(f"warning: {text}" for text in self.warnings)])


def verify(model: nn.Module, batches: Batches, *, inputs: Pick | None = None) -> Verification:
    """Run a swapped network and its plain self, with the same weights, on the same data, and compare.

    Args:
        model: a converted network; left as it is.
        batches: as a data loader gives them, each a tensor, a tuple such as (image, label), of which the network gets
            as many as its forward takes, or a mapping, of which it gets what its forward names; a lone tensor is one.
        inputs: a function that picks what the network gets of a batch, such as `lambda batch: batch["image"]`.

    Raises:
        HotswapError: where nothing is swapped or there is no data.
    """
    comparison = Comparison(model)
    for arguments in as_batches(model, batches, inputs):
        comparison.add(arguments)
    return comparison.result()


class Comparison:
    """A swapped network beside its plain self, on one batch after another; `verify` in steps.

    Raises:
        HotswapError: where nothing is swapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.plain, self.layers = model, plain_copy(model), swapped_layers(model)
        self._gap = Gap()
        self._seen = {path: _Deviation() for path in self.layers}

    def add(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """Run both on one batch, and count it in: the outputs of the plain network and of the swapped one."""

        def visit(path: str, layer: Swapped, distance: Tensor, counts: Tensor) -> None:
            self._seen[path].add(layer.deviation(distance), counts)

        before = run(self.plain, arguments)
        with visited(self.model, visit):
            after = run(self.model, arguments)
        self._gap.add(before, after)
        return before, after

    def result(self) -> Verification:
        """The comparison over all batches so far."""
        checks = []
        for path, d in self._seen.items():
            entry = self.layers[path].swap
            gate, closed = (entry.gate, entry.closed) if isinstance(entry, Swap) else ((), False)
            inert = closed or abs(d.mean) < INERT_DEVIATION
            checks.append(TargetCheck(path, entry.guide_scale, d.mean, d.largest, inert, gate))
        gap, plan = self._gap, install.current_plan(self.model)
        output = None if plan is None else plan.output
        closed_output = output.name if output is not None and output.closed else None
        same = _same_state(self.plain, self.model)
        return Verification(gap.largest, gap.relative, same, tuple(checks), gap.why_unknown, closed_output)


class _Deviation:
    def __init__(self) -> None:
        self.total, self.count, self.largest = 0.0, 0, 0.0

    def add(self, deviation: Tensor, counts: Tensor) -> None:
        values = deviation[:, 0][:, counts]
        self.total += values.sum().item()
        self.count += values.numel()
        self.largest = max(self.largest, values.max().item() if values.numel() else 0.0)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


def _same_state(plain: nn.Module, swapped: nn.Module) -> bool:
    shapes = {name: x.shape for name, x in plain.state_dict().items()}
    return shapes == {name: x.shape for name, x in swapped.state_dict().items() if not is_learned(name)}
