"""The content of a report, to be laid out as a page or given as JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from hotswap.measure.compare import drift_text
from hotswap.measure.verify import TargetCheck, Verification
from hotswap.reporting.cost import Cost, Costs
from hotswap.reporting.diagram import Drawing
from hotswap.reporting.encoding import Picture
from hotswap.reporting.figures import BARS, Histogram
from hotswap.reporting.outputs import Compared, summary
from hotswap.reporting.reproduce import Origin, Steps
from hotswap.reporting.views import View
from hotswap.targets.entries import Resize, Swap
from hotswap.targets.plan import Plan


@dataclass(frozen=True)
class Target:
    """One target."""

    entry: Swap | Resize  # of the plan
    check: TargetCheck  # of the verification
    kind: str  # the kind of layer, in words
    calls: int  # for one image
    histogram: Histogram
    reach: float  # the 1 - K that is drawn brightest
    cost: Cost | None
    views: tuple[View, ...]


@dataclass(frozen=True)
class Image:
    """One image."""

    name: str
    picture: Picture | None
    compared: Compared | None


@dataclass(frozen=True)
class Content:
    """All of a report."""

    origin: Origin
    drawing: Drawing
    parameters: int
    modules: int
    verification: Verification
    targets: tuple[Target, ...]
    images: tuple[Image, ...]
    costs: Costs
    plan: Plan
    steps: Steps
    versions: dict[str, str]
    written: str  # the date and time

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings, one line each."""
        unlike = [t.check.path for t in self.targets if t.histogram.not_finite]
        text = f"the guide of {', '.join(unlike)} has values that are not finite"
        return (*self.verification.warnings, *([text] if unlike else []))

    @property
    def lines(self) -> tuple[str, ...]:
        """Outputs, cost and warnings in a few lines."""
        check, cost = self.verification, self.costs.network
        told = summary([image.compared for image in self.images])
        return (
            drift_text(check.output_relative, check.why_no_drift),
            *([told] if told else []),
            f"the network takes {cost.swapped.milliseconds:.0f} ms instead of {cost.plain.milliseconds:.0f}",
            *(["warning: runs differed much in time, so the machine was busy"] if self.costs.unsteady else []),
            *(f"warning: {text}" for text in self.warnings),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "network": self.origin.network,
            "checkpoint": self.origin.checkpoint,
            "architecture": self.origin.architecture,
            "images": [image.name for image in self.images],
            "images_from": self.origin.images,
            "outputs": [image.compared and _outputs(image.compared) for image in self.images],
            "output_relative": _finite(self.verification.output_relative),
            "output_max_abs": _finite(self.verification.output_max_abs),
            "why_no_drift": self.verification.why_no_drift,
            "targets": [_target(target) for target in self.targets],
            "cost": _cost(self.costs.network),
            "cost_conditions": self.costs.conditions,
            "cost_unsteady": self.costs.unsteady,
            "plan": self.plan.to_dict(),
            "versions": self.versions,
            "warnings": list(self.warnings),
        }


# --- as JSON ------------------------------------------------------------------------------------------------------


def _target(target: Target) -> dict[str, Any]:
    histogram = target.histogram
    return {
        "path": target.check.path,
        "alias": target.entry.target_alias,
        "kind": target.kind,
        "guide": target.entry.guide_name,
        "guide_scale": target.check.guide_scale,
        "deviation": _finite(target.check.deviation),
        "max_deviation": _finite(target.check.max_deviation),
        "inert": target.check.inert,
        "conserve": getattr(target.entry, "conserve", None),  # enlargements need none
        "kernel_quantiles": {f"{share:g}": histogram.quantile(share) for share in (0.1, 0.5, 0.9)},
        "kernel_histogram": {"edges": [i / BARS for i in range(BARS + 1)], "shares": list(histogram.bars)},
        "deviation_by_image": {view.image: _finite(view.deviation) for view in target.views},
        "cost": target.cost and _cost(target.cost),
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return asdict(cost) | {"time_ratio": cost.time_ratio, "swapped_bytes": cost.swapped.bytes}


def _outputs(compared: Compared) -> dict[str, Any]:
    return {
        "output": compared.where,
        "shape": list(compared.shape),
        "kind": compared.kind,
        "changed": compared.changed,
        "labels": [asdict(label) for label in compared.labels],
        "scores": [asdict(score) for score in compared.scores],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
