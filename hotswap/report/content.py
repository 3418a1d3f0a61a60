"""What a report says, ready to be laid out or told as JSON."""

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
from torch import nn

from hotswap.measure import Swapped, drift_text
from hotswap.observe import Observation
from hotswap.plan import Plan
from hotswap.report import colours, encoding
from hotswap.report.cost import Cost, Costs
from hotswap.report.diagram import Drawing, draw
from hotswap.report.encoding import Picture
from hotswap.report.figures import BARS, Figures, Histogram, Place, Windows
from hotswap.report.outline import outline, plain_name
from hotswap.report.outputs import Compared, compare, summary
from hotswap.report.reproduce import Origin, Steps, steps
from hotswap.resizing.layers import GuidedResize
from hotswap.sliding import POOL, TRANSPOSED
from hotswap.verify import Verification

_PACKAGES = ("hotswap", "torch", "torchvision", "timm", "numpy", "pillow")
_LARGEST_TABLE = 7  # windows up to this size are told in numbers


@dataclass(frozen=True)
class Window:
    """K at one pixel: rows of numbers, None outside the image; or a picture, where there are too many."""

    number: int  # of the place
    rows: tuple[tuple[float | None, ...], ...]
    picture: Picture | None
    alt: str


@dataclass(frozen=True)
class View:
    """One target on one image."""

    image: str
    size: tuple[int, int]
    deviation: float
    map: Picture
    marks: tuple[Place, ...]
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Target:
    """One target."""

    name: str
    alias: str | None
    kind: str
    guide: str
    scale: float
    learned: bool
    kernel: str
    conserve: str | None
    deviation: float
    max_deviation: float
    inert: bool
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
    marks: tuple[Place, ...]
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
    images_from: str
    costs: Costs
    plan: Plan
    steps: Steps
    versions: dict[str, str]
    made: str  # when

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look at, a line each."""
        unlike = [t.name for t in self.targets if t.histogram.not_finite]
        text = f"the guide of {', '.join(unlike)} has values that are not finite"
        return (*self.verification.warnings, *([text] if unlike else []))

    @property
    def lines(self) -> tuple[str, ...]:
        """The outputs and the warnings in a few lines, for people."""
        check, cost = self.verification, self.costs.network
        told = summary([image.compared for image in self.images])
        return (
            drift_text(check.output_relative, check.why_no_drift),
            *([told] if told else []),
            f"the network takes {cost.swapped.milliseconds:.0f} ms instead of {cost.plain.milliseconds:.0f}",
            *(f"warning: {text}" for text in self.warnings),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "network": self.origin.network,
            "checkpoint": self.origin.checkpoint,
            "architecture": self.origin.architecture,
            "images": [image.name for image in self.images],
            "images_from": self.images_from,
            "outputs": [image.compared and _outputs(image.compared) for image in self.images],
            "output_relative": _finite(self.verification.output_relative),
            "output_max_abs": _finite(self.verification.output_max_abs),
            "why_no_drift": self.verification.why_no_drift,
            "targets": [_target(target) for target in self.targets],
            "cost": _cost(self.costs.network),
            "cost_conditions": self.costs.conditions,
            "plan": self.plan.to_dict(),
            "versions": self.versions,
            "warnings": list(self.warnings),
        }


def make(
    model: nn.Module,
    plan: Plan,
    figures: Figures,
    costs: Costs,
    observation: Observation | None,
    images_from: str,
    outputs: str,
    origin: Origin,
) -> Content:
    """Put together what was found.

    Args:
        model: the swapped network.
        plan: of its swaps.
        figures: from its runs.
        costs: of them.
        observation: one run of it on fake tensors, if there is one.
        images_from: where the images are from.
        outputs: how maps are drawn; see `hotswap.report.outputs`.
        origin: where the network is from, and what was asked for.
    """
    shown = figures.shown
    verification = figures.verification
    images = tuple(
        Image(
            one.sample.name,
            None if one.sample.picture is None else encoding.photograph(one.sample.picture),
            one.places,
            compare(one.plain, one.swapped, outputs),
        )
        for one in shown
    )
    return Content(
        origin=origin,
        drawing=draw(outline(model, plan, observation, shown[0].sample)),
        parameters=sum(p.numel() for p in figures.comparison.plain.parameters()),
        modules=sum(1 for module in figures.comparison.plain.modules() if not any(True for _ in module.children())),
        verification=verification,
        targets=tuple(_targets(plan, figures, verification, costs)),
        images=images,
        images_from=images_from,
        costs=costs,
        plan=plan,
        steps=steps(plan, origin),
        versions={"python": platform.python_version()} | _versions(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _targets(plan: Plan, figures: Figures, verification: Verification, costs: Costs) -> list[Target]:
    entries = {swap.target: swap for swap in plan.swaps} | {resize.name: resize for resize in plan.resizes}
    found = []
    for check in verification.targets:
        entry: Any = entries[check.path]
        views = [(one, one.windows[check.path]) for one in figures.shown if check.path in one.windows]
        reach = _reach([seen for _, seen in views])
        found.append(
            Target(
                name=check.path,
                alias=entry.target_alias,
                kind=_kind(figures.comparison.layers[check.path]),
                guide=entry.guide_name,
                scale=check.guide_scale,
                learned=entry.learn_scale,
                kernel=entry.kernel,
                conserve=getattr(entry, "conserve", None),
                deviation=check.deviation,
                max_deviation=check.max_deviation,
                inert=check.inert,
                calls=figures.calls.get(check.path, 0),
                histogram=figures.histograms[check.path],
                reach=reach,
                cost=costs.targets.get(check.path),
                views=tuple(_view(one.sample.name, one.places, seen, reach) for one, seen in views),
            )
        )
    return found


def _kind(layer: Swapped) -> str:
    if isinstance(layer, GuidedResize):
        return f"enlargement, {layer.swap.mode}, {layer.swap.footprint} × {layer.swap.footprint} coarse pixels"
    size = " × ".join(map(str, layer.sliding.kernel_size))
    name = {TRANSPOSED: "transposed convolution", POOL: "average pool"}.get(layer.sliding.kind, "convolution")
    plain = plain_name(layer)
    named = "" if plain in ("Conv2d", "ConvTranspose2d", "AvgPool2d") else f" ({plain})"
    return f"{name}{named}, {size}"


def _reach(views: Sequence[Windows]) -> float:
    """What is drawn brightest: nearly the largest 1 - K of all images, so that they can be compared."""
    values = [np.quantile(np.nan_to_num(np.abs(seen.change)), 0.995) for seen in views]
    return max((float(value) for value in values), default=0.0) or 1.0


def _view(image: str, places: tuple[Place, ...], seen: Windows, reach: float) -> View:
    drawn = encoding.indexed(colours.places(seen.change, 0.0, reach), colours.ramp_palette())
    windows = tuple(_window(number, at) for number, at in enumerate(seen.at, start=1))
    return View(image, seen.size, seen.deviation, drawn, places, windows)


def _window(number: int, kernel: Any) -> Window:
    rows = tuple(tuple(None if math.isnan(k) else float(k) for k in row) for row in kernel)
    finite = [k for row in rows for k in row if k is not None]
    low, high = min(finite, default=1.0), max(finite, default=1.0)
    alt = f"K at pixel {number}, {len(rows)} by {len(rows[0])}: {low:.2f} to {high:.2f}"
    if max(kernel.shape) <= _LARGEST_TABLE:
        return Window(number, rows, None, alt)
    grey = colours.places(np.asarray(kernel, dtype=np.float32), 0.0, 1.0)
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return Window(number, (), encoding.indexed(grey, palette), alt)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# --- as JSON ------------------------------------------------------------------------------------------------------


def _target(target: Target) -> dict[str, Any]:
    histogram = target.histogram
    return {
        "path": target.name,
        "alias": target.alias,
        "kind": target.kind,
        "guide": target.guide,
        "guide_scale": target.scale,
        "deviation": _finite(target.deviation),
        "max_deviation": _finite(target.max_deviation),
        "inert": target.inert,
        "conserve": target.conserve,
        "kernel_quantiles": {f"{share:g}": histogram.quantile(share) for share in (0.1, 0.5, 0.9)},
        "kernel_histogram": {"edges": [i / BARS for i in range(BARS + 1)], "shares": list(histogram.bars)},
        "deviation_by_image": {view.image: _finite(view.deviation) for view in target.views},
        "cost": target.cost and _cost(target.cost),
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return asdict(cost) | {"time_ratio": cost.time_ratio, "swapped_bytes": cost.most}


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


def plan_json(plan: Plan) -> str:
    """A plan as `hotswap convert --plan` reads it."""
    return json.dumps(plan.to_dict(), indent=2)
