"""Assembles the content of a report from its measurements."""

from datetime import UTC, datetime

from torch import nn

from hotswap import versions
from hotswap.measure.compare import Swapped
from hotswap.measure.verify import Verification
from hotswap.network.dry_run import Observation
from hotswap.reporting import encoding
from hotswap.reporting.content import Content, Image, Target
from hotswap.reporting.cost import Costs
from hotswap.reporting.diagram import draw
from hotswap.reporting.figures import Figures
from hotswap.reporting.outline import outline, plain_name
from hotswap.reporting.reproduce import Origin, steps
from hotswap.reporting.views import reach_of, view
from hotswap.targets.enlargement import GuidedResize
from hotswap.targets.plan import Plan
from hotswap.targets.window import POOL, TRANSPOSED

_PACKAGES = ("hotswap", "torch", "torchvision", "timm", "numpy", "pillow")


def make(
    model: nn.Module,
    plan: Plan,
    figures: Figures,
    costs: Costs,
    observation: Observation | None,
    origin: Origin,
) -> Content:
    """Assemble the content of a report; `observation` is a dry run of the network, for sizes, if there is one."""
    shown = figures.shown
    verification = figures.comparison.result()
    images = tuple(
        Image(
            one.sample.name,
            None if one.sample.picture is None else encoding.photograph(one.sample.picture),
            one.compared,
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
        costs=costs,
        plan=plan,
        steps=steps(origin),
        versions={name: version for name, version in versions.installed(_PACKAGES).items() if version},
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _targets(plan: Plan, figures: Figures, verification: Verification, costs: Costs) -> list[Target]:
    entries = {entry.name: entry for entry in plan.entries}
    targets = []
    for check in verification.targets:
        views = [(one, one.windows[check.path]) for one in figures.shown if check.path in one.windows]
        reach = reach_of([seen for _, seen in views])
        targets.append(
            Target(
                entry=entries[check.path],
                check=check,
                kind=_kind(figures.comparison.layers[check.path]),
                calls=figures.calls.get(check.path, 0),
                histogram=figures.histograms[check.path],
                reach=reach,
                cost=costs.targets.get(check.path),
                views=tuple(view(one.sample.name, one.places, seen, reach) for one, seen in views),
            )
        )
    return targets


def _kind(layer: Swapped) -> str:
    if isinstance(layer, GuidedResize):
        each = ", ".join(f"{n} × {n}" for n in layer.swap.footprints)
        return f"enlargement, {layer.swap.mode}, {each} coarse pixels"
    size = " × ".join(map(str, layer.sliding.kernel_size))
    name = {TRANSPOSED: "transposed convolution", POOL: "average pool"}.get(layer.sliding.kind, "convolution")
    plain = plain_name(layer)
    named = "" if plain in ("Conv2d", "ConvTranspose2d", "AvgPool2d") else f" ({plain})"
    return f"{name}{named}, {size}"
