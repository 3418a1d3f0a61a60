"""Swaps convolutions of one network, and holds it to every promise that `hotswap.convert` makes."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import hotswap
from benchmarks.coverage.networks import Inputs, Network
from benchmarks.coverage.outputs import difference, gradients, has_gradient, in_float64, run
from benchmarks.coverage.plain import NotApplicable, running
from benchmarks.coverage.promises import ROUNDING, ROUNDING_64, BrokenPromise, Plain
from hotswap.api import PAPER_SCALE
from hotswap.targets.choose import PAPER
from hotswap.targets.convolution import SwappedConv2d

LEAST_CONVOLUTIONS = 2  # a target and something to guide it
PAPER_DIFFERENCE = 1e-3
CHANGES = 5  # of weights, by chance, at most
AS_MUCH = 10  # up to so many times what a chance change does, a difference is the network's own: it sorts, or rounds
DEVIATION = 0.3  # mean of 1 - K at which gradients are looked at
_COPIED_UP_TO = 200_000_000  # parameters; larger networks are converted in place, for memory's sake


@dataclass
class Report:
    """What is known of one network, filled in as its checks go on."""

    parameters: int = 0
    convolutions: int = 0  # spatial, of odd window, that the forward calls
    size: int = 0  # side length of its input
    choice: str = ""  # "paper", or "first-last"
    targets: tuple[str, ...] = ()
    guide: tuple[str, ...] = ()
    method: str = ""
    difference_zero: float = math.nan  # relative, at guide_scale=0
    difference_paper: float = math.nan  # ... and at 1e-4
    difference_strong: float = math.nan  # ... and calibrated to DEVIATION
    notes: list[str] = field(default_factory=list)


def check(network: Network, report: Report) -> None:
    """Build, convert, run, differentiate and revert one network.

    Raises:
        NotApplicable: it has no two spatial convolutions.
        PlainError: it cannot be built or run at any of its sizes.
        HotswapError: it cannot be converted.
        BrokenPromise: the swapped network differs where it must not.
    """
    count_before_building(network)
    sizes = list(network.sizes)
    while sizes:
        model, inputs = running(replace(network, sizes=sizes), report)
        calls = _observed(model, inputs)
        report.convolutions = len(calls.candidates)
        if report.convolutions < LEAST_CONVOLUTIONS:
            raise NotApplicable(f"{report.convolutions} spatial convolutions of odd window are called")
        sizes = sizes[sizes.index(report.size) + 1 :]
        try:
            check_model(model, inputs, calls, report)
        except hotswap.HotswapError as error:
            if "has no neighbours" not in str(error) or not sizes:
                raise  # otherwise the image was too small for the window
        else:
            return


def check_model(model: nn.Module, inputs: Inputs, calls: "Calls", report: Report) -> None:
    """The promises, for a network that runs; it may be left converted where one is broken.

    Raises:
        HotswapError: it cannot be converted.
        BrokenPromise: the swapped network differs where it must not.
    """
    plain = Plain(model, inputs)
    swapped = _convert(model, inputs, calls, report)
    plain.check_kept(swapped)
    _compare(_outputs(swapped, inputs), plain.output, report)
    if not (report.difference_zero <= ROUNDING and report.difference_paper <= PAPER_DIFFERENCE):
        in_float32 = f"rounding makes {report.difference_zero:.1e}, and 1e-4 {report.difference_paper:.1e}"
        report.notes.append(f"compared in float64, as in float32 {in_float32}")
        _compare_in_float64(swapped, inputs, report)
        if not report.difference_zero <= ROUNDING_64:
            raise BrokenPromise(f"at guide_scale=0 outputs differ by {report.difference_zero:.1e} in float64")
    if not report.difference_paper <= PAPER_DIFFERENCE:
        change, moved = _moved_by_chance(swapped, inputs, plain.output, report)
        if not moved >= report.difference_paper / AS_MUCH:
            raise BrokenPromise(f"at guide_scale=1e-4 outputs differ by {report.difference_paper:.1e}")
        report.notes.append(
            f"outputs jump: at 1e-4 by {report.difference_paper:.1e}, where K differs from 1 by {change:.1e}; "
            f"changing the plain network's weights by as much moves them by {moved:.1e}"
        )
    hotswap.calibrate(swapped, [inputs], deviation=DEVIATION, conserve=None)
    report.difference_strong = _check_gradients(swapped, inputs, report, plain.output)
    plain.check_reverted(swapped)


# --- its convolutions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calls:
    """Convolutions in the order of their first call."""

    batches: dict[str, int]  # by path: images in the first output, of convolutions of any window
    candidates: tuple[str, ...]  # paths of the spatial ones of odd window


def count_before_building(network: Network) -> None:
    """Leave networks without convolutions unbuilt: among them are the largest of all.

    Raises:
        NotApplicable: it has no two spatial convolutions.
    """
    try:
        with torch.device("meta"):
            model = network.build()
    except Exception:  # noqa: BLE001 (many constructors compute with values; they are then built in earnest)
        return
    found = sum(_is_candidate(module) for module in model.modules())
    if found < LEAST_CONVOLUTIONS:
        raise NotApplicable(f"{found} spatial convolutions of odd window")


def _is_candidate(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and all(k % 2 == 1 for k in module.kernel_size)
    )


def _observed(model: nn.Module, inputs: Inputs) -> Calls:
    paths: dict[nn.Module, str] = {m: path for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    called: dict[str, nn.Module] = {}
    batches: dict[str, int] = {}

    def note(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        called.setdefault(paths[module], module)
        batches.setdefault(paths[module], output.shape[0])

    handles = [module.register_forward_hook(note) for module in paths]
    run(model, inputs)
    for handle in handles:
        handle.remove()
    candidates = tuple(path for path, module in called.items() if _is_candidate(module))
    return Calls(batches, candidates)


# --- the swapped network --------------------------------------------------------------------------------


def _convert(model: nn.Module, inputs: Inputs, calls: Calls, report: Report) -> nn.Module:
    """With "paper" where that finds stages enough, else the last convolution guided by the first."""
    inplace = report.parameters > _COPIED_UP_TO
    options: Any = {"guide_scale": 0.0, "example_inputs": inputs, "inplace": inplace}
    report.choice = PAPER
    try:
        swapped = hotswap.convert(model, PAPER, **options)
    except hotswap.HotswapError as error:
        if not str(error).startswith(f'"{PAPER}" needs'):
            raise
        report.choice = "first-last"
        report.notes.append(str(error).partition(";")[0])
        target, guide = _first_and_last(calls)
        swapped = hotswap.convert(model, target, guide, **options)
    plan = hotswap.status(swapped).plan
    assert plan is not None
    report.targets = tuple(swap.target for swap in plan.swaps)
    report.guide = tuple(dict.fromkeys(path for swap in plan.swaps for path in swap.guide))
    report.method = plan.method
    return swapped


def _first_and_last(calls: Calls) -> tuple[str, str]:
    """The last target that has a guide, and the first convolution that can be it: one of as many images."""
    order = list(calls.batches)
    for target in reversed(calls.candidates):
        for guide in order[: order.index(target)]:
            if calls.batches[guide] == calls.batches[target]:
                return target, guide
    raise NotApplicable("no convolution runs before another of as many images")


def _layers(model: nn.Module) -> dict[str, SwappedConv2d]:
    return {path: module for path, module in model.named_modules() if isinstance(module, SwappedConv2d)}


def _set_scales(model: nn.Module, scale: float) -> None:
    for layer in _layers(model).values():
        layer.guide_scale = scale


def _outputs(swapped: nn.Module, inputs: Inputs) -> tuple[Any, Any]:
    """At a scale of 0, and at the paper's."""
    _set_scales(swapped, 0.0)
    zero = run(swapped, inputs)
    _set_scales(swapped, PAPER_SCALE)
    return zero, run(swapped, inputs)


def _compare(outputs: tuple[Any, Any], plain: Any, report: Report) -> None:
    report.difference_zero, report.difference_paper = (difference(output, plain) for output in outputs)


def _compare_in_float64(swapped: nn.Module, inputs: Inputs, report: Report) -> None:
    twin, doubled = in_float64(swapped, inputs)
    outputs = _outputs(twin, doubled)
    # In place, as memory for two of the largest is not there.
    _compare(outputs, run(hotswap.revert(twin, inplace=True), doubled), report)


def _moved_by_chance(swapped: nn.Module, inputs: Inputs, plain: Any, report: Report) -> tuple[float, float]:
    """How far K is from 1, and the furthest that outputs move where the plain network's weights change by as much.

    Whether a change makes a network that sorts or rounds jump is chance, so there are some.
    """
    change = max(target.deviation for target in hotswap.verify(swapped, [inputs]).targets)
    twin = hotswap.revert(swapped)
    weights: dict[str, Any] = {path: twin.get_submodule(path).weight for path in report.targets}
    before = {path: weight.detach().clone() for path, weight in weights.items()}
    moved = 0.0
    for _ in range(CHANGES):
        with torch.no_grad():
            for path, weight in weights.items():
                weight.copy_(before[path] * (1 - 2 * change * torch.rand_like(weight)))
        moved = max(moved, difference(run(twin, inputs), plain))
        if moved >= report.difference_paper / AS_MUCH:
            break
    return change, moved


def _check_gradients(swapped: nn.Module, inputs: Inputs, report: Report, plain: Any) -> float:
    """Gradients must reach each target's weight and what the guide is made by; returns how far outputs moved."""
    for p in swapped.parameters():
        p.requires_grad_(False)
    weights = {path: swapped.get_submodule(path).weight for path in report.targets}
    guides = {p for path in report.guide for p in swapped.get_submodule(path).parameters()}
    sources: list[Any] = [*weights.values(), *guides]
    for x in sources:
        x.requires_grad_(True)
    output = run(swapped, inputs, gradients=True)
    if not has_gradient(output):
        if has_gradient(run(hotswap.revert(swapped), inputs, gradients=True)):
            raise BrokenPromise("no output has a gradient")
        report.notes.append("no output has a gradient, and none has in the plain network")
        return difference(output, plain)
    found = gradients(output, sources)
    for path, gradient in zip([*weights, *["the guide"] * len(guides)], found, strict=True):
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise BrokenPromise(f"the gradient of {path} is not finite")
    reached = [gradient is not None and bool(gradient.any()) for gradient in found]
    missed = [path for path, arrived in zip(weights, reached, strict=False) if not arrived]
    if missed:
        twin = hotswap.revert(swapped)
        unswapped = run(twin, inputs, gradients=True)
        plainly = gradients(unswapped, [twin.get_submodule(path).weight for path in missed])
        if len(missed) == len(weights) or any(gradient is not None and bool(gradient.any()) for gradient in plainly):
            raise BrokenPromise(f"no gradient reaches {', '.join(missed)}")
        report.notes.append(f"no gradient reaches {', '.join(missed)}, and none does in the plain network")
    if guides and not any(reached[len(weights) :]):
        raise BrokenPromise("no gradient reaches the guide")
    return difference(output, plain)
