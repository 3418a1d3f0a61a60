"""Swaps the enlargements of one network for guided ones, and holds it to the same promises."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import hotswap
from benchmarks.coverage.networks import Inputs, Network
from benchmarks.coverage.outputs import difference, gradients, has_gradient, in_float64, run, tensors
from benchmarks.coverage.plain import NotApplicable, running
from benchmarks.coverage.promises import ROUNDING, ROUNDING_64, BrokenPromise, Plain
from hotswap.choices import FOOTPRINTS, FX, HOOKS
from hotswap.targets.entries import why_not_guided
from hotswap.targets.sites import Site, Sites, find
from hotswap.targets.verdicts import EVERY

DEVIATION = 0.5  # mean of 1 - K at which outputs and gradients are looked at: the default
GRADIENT_ROUNDING = 1e-4  # relative, of all parameters' gradients at guide_scale=0 in float32; in float64 ROUNDING_64


@dataclass
class Report:
    """What is known of one network, filled in as its checks go on."""

    parameters: int = 0
    size: int = 0  # side length of its input
    enlargements: int = 0  # by 2 or more, of more than a pixel
    targets: tuple[str, ...] = ()  # those that were swapped
    guide: tuple[str, ...] = ()
    footprints: tuple[int, ...] = ()  # that it was swapped with
    method: str = ""
    difference_zero: float = math.nan  # relative, at guide_scale=0; of 2 x 2, as 4 x 4 are another enlargement
    difference_strong: float = math.nan  # ... and calibrated to DEVIATION; of the widest footprint
    notes: list[str] = field(default_factory=list)


def check(network: Network, report: Report) -> None:
    """Build, convert, run, differentiate and revert one network.

    Nearest enlargements have something to steer with a footprint of 4 x 4 alone, so where there are any the network
    is converted with that, too.

    Raises:
        NotApplicable: it enlarges nothing by 2 or more, but for single pixels, where there is nothing to weigh.
        PlainError: it cannot be built or run at any of its sizes.
        HotswapError: it cannot be converted.
        BrokenPromise: the swapped network differs where it must not.
    """
    model, inputs = running(network, report)
    sites = find(model, inputs)
    doubling = [alias for alias, site in sites.by_alias.items() if _doubles(site) and math.prod(site.input_size) > 1]
    report.enlargements = len(doubling)
    if not doubling:
        raise NotApplicable("it enlarges nothing by 2 or more, but for single pixels")
    # The narrowest of those footprints that take the same; where none takes any, the refusal says why.
    swaps = {taken: f for f in reversed(FOOTPRINTS) if (taken := _guidable(sites, doubling, f))}
    for aliases, footprint in sorted(swaps.items(), key=lambda swap: swap[1]) or [((EVERY,), FOOTPRINTS[0])]:
        check_model(model, inputs, aliases, footprint, report)


def _doubles(site: Site) -> bool:
    """Whether it enlarges by 2 or more along both axes; an odd size was rounded up when it was halved."""
    return all(fine >= 2 * coarse - 1 for fine, coarse in zip(site.output_size, site.input_size, strict=True))


def _guidable(sites: Sites, aliases: Sequence[str], footprint: int) -> tuple[str, ...]:
    """Those that can be guided with a footprint."""
    by_alias = sites.by_alias
    return tuple(
        alias
        for alias in aliases
        if by_alias[alias].why_not is None and why_not_guided(by_alias[alias].mode, footprint) is None
    )


def check_model(model: nn.Module, inputs: Inputs, targets: Sequence[str], footprint: int, report: Report) -> None:
    """The promises, for a network that runs; it may be left converted where one is broken.

    Raises:
        HotswapError: it cannot be converted.
        BrokenPromise: the swapped network differs where it must not.
    """
    plain = Plain(model, inputs)
    swapped = _convert(model, inputs, targets, footprint, report)
    plain.check_kept(swapped)
    if footprint == min(FOOTPRINTS):
        _check_same(model, swapped, inputs, report)
    hotswap.calibrate(swapped, [inputs], deviation=DEVIATION)
    report.difference_strong = _check_strong(swapped, inputs, plain.output)
    plain.check_reverted(swapped)


def _convert(model: nn.Module, inputs: Inputs, targets: Sequence[str], footprint: int, report: Report) -> nn.Module:
    """These enlargements guided by the image; or, where that cannot be, by what the refusal says can."""
    options: Any = {"guide_scale": 0.0, "footprint": footprint, "example_inputs": inputs}
    try:
        swapped = hotswap.convert(model, targets, "input", **options)
    except hotswap.HotswapError as error:
        named = re.search(r"; '(\S+)' is fine enough", str(error))
        if named is None:
            raise
        report.notes.append(str(error).partition(";")[0])
        swapped = hotswap.convert(model, targets, named[1], **options)
    plan = hotswap.status(swapped).plan
    assert plan is not None
    report.targets = tuple(resize.target_alias or resize.name for resize in plan.resizes)
    report.guide = plan.resizes[0].guide
    report.footprints += (footprint,)
    report.method = HOOKS if plan.resizes[0].taps else FX  # the plan's own is that of convolutions
    return swapped


def _check_same(model: nn.Module, swapped: nn.Module, inputs: Inputs, report: Report) -> None:
    """At guide_scale=0 outputs and gradients are the plain network's."""
    gradient = _compare(model, swapped, inputs, report)
    if report.difference_zero <= ROUNDING and gradient <= GRADIENT_ROUNDING:
        return
    in_float32 = f"rounding makes {report.difference_zero:.1e}, and {gradient:.1e} of gradients"
    report.notes.append(f"compared in float64, as in float32 {in_float32}")
    doubled, inputs_64 = in_float64(model, inputs)
    gradient = _compare(doubled, in_float64(swapped, inputs)[0], inputs_64, report)
    if not report.difference_zero <= ROUNDING_64:
        raise BrokenPromise(f"at guide_scale=0 outputs differ by {report.difference_zero:.1e} in float64")
    if not gradient <= ROUNDING_64:
        raise BrokenPromise(f"at guide_scale=0 gradients differ by {gradient:.1e} in float64")


def _compare(model: nn.Module, swapped: nn.Module, inputs: Inputs, report: Report) -> float:
    """Note how far outputs differ, and give how far gradients do, all as one: rounding makes much of tiny ones."""
    expected, found = run(model, inputs, gradients=True), run(swapped, inputs, gradients=True)
    report.difference_zero = difference(found, expected)
    if not has_gradient(expected):
        report.notes.append("no output has a gradient, and none has in the plain network")
        return 0.0
    pairs = zip(_of_parameters(swapped, found), _of_parameters(model, expected), strict=True)
    norms = [(float((a - b).double().norm()), float(b.double().norm())) for a, b in pairs]
    for network in (model, swapped):
        run(network, inputs)  # some keep what they computed last, and with a graph that cannot be copied
    return math.hypot(*(apart for apart, _ in norms)) / (math.hypot(*(whole for _, whole in norms)) + 1e-12)


def _check_strong(swapped: nn.Module, inputs: Inputs, plain: Any) -> float:
    """Outputs and gradients are finite; returns how far outputs moved."""
    output = run(swapped, inputs, gradients=True)
    found = _of_parameters(swapped, output) if has_gradient(output) else []
    for what, some in (("outputs", tensors(output)), ("gradients", found)):
        if not all(bool(torch.isfinite(x).all()) for x in some):
            raise BrokenPromise(f"{what} are not finite at a deviation of {DEVIATION}")
    return difference(output, plain)


def _of_parameters(model: nn.Module, output: Any) -> list[Tensor]:
    """All parameters' gradients."""
    sources = [p for p in model.parameters() if p.requires_grad]
    return [
        torch.zeros(()).expand_as(p) if g is None else g
        for p, g in zip(sources, gradients(output, sources), strict=True)
    ]
