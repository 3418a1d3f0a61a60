"""Converts one network and holds it to every promise of DESIGN.md section 4."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import hotswap
from benchmarks.coverage.networks import Inputs, Network
from hotswap.api import PAPER_SCALE
from hotswap.layers import SwappedConv2d

LEAST_CONVOLUTIONS = 2  # a target and something to guide it
ROUNDING = 1e-5  # relative, float32: what a deep network makes of another order of summation ...
ROUNDING_64 = 1e-9  # ... and, where it makes more of it, float64
PAPER_DIFFERENCE = 1e-3
CHANGES = 5  # of weights, by chance, at most
AS_MUCH = 10  # up to so many times what a chance change does, a difference is the network's own: it sorts, or rounds
DEVIATION = 0.3  # mean of 1 - K at which gradients are looked at
_COPIED_UP_TO = 200_000_000  # parameters; larger networks are converted in place, for memory's sake


class PlainError(Exception):
    """The network itself does not run."""


class NotApplicable(Exception):  # noqa: N818 (no error: there is nothing to do)
    """Fewer convolutions than a swap needs."""


class BrokenPromise(Exception):  # noqa: N818 (what a check found)
    """The swapped network does something it must not."""


@dataclass
class Report:
    """What is known of one network, filled in as its checks go on."""

    parameters: int = 0
    convolutions: int = 0  # spatial, of odd window, that the forward calls
    size: int = 0  # side length of its input
    choice: str = ""  # "auto", or "first-last"
    targets: tuple[str, ...] = ()
    guides: tuple[str, ...] = ()
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
        model, inputs, calls = _running(replace(network, sizes=sizes), report)
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
    plain = run(model, inputs)
    keys, kind = list(model.state_dict()), type(model)
    swapped = _convert(model, inputs, calls, report)
    if list(swapped.state_dict()) != keys:
        raise BrokenPromise("state_dict has other keys")
    if not isinstance(swapped, kind) or type(swapped).__name__ != kind.__name__:
        raise BrokenPromise(f"class {type(swapped).__name__} instead of {kind.__name__}")
    _compare(_outputs(swapped, inputs), plain, report)
    if not (report.difference_zero <= ROUNDING and report.difference_paper <= PAPER_DIFFERENCE):
        in_float32 = f"rounding makes {report.difference_zero:.1e}, and 1e-4 {report.difference_paper:.1e}"
        report.notes.append(f"compared in float64, as in float32 {in_float32}")
        _compare_in_float64(swapped, inputs, report)
        if not report.difference_zero <= ROUNDING_64:
            raise BrokenPromise(f"at guide_scale=0 outputs differ by {report.difference_zero:.1e} in float64")
    if not report.difference_paper <= PAPER_DIFFERENCE:
        change, moved = _moved_by_chance(swapped, inputs, plain, report)
        if not moved >= report.difference_paper / AS_MUCH:
            raise BrokenPromise(f"at guide_scale=1e-4 outputs differ by {report.difference_paper:.1e}")
        report.notes.append(
            f"outputs jump: at 1e-4 by {report.difference_paper:.1e}, where K differs from 1 by {change:.1e}; "
            f"changing the plain network's weights by as much moves them by {moved:.1e}"
        )
    hotswap.calibrate(swapped, [inputs], deviation=DEVIATION, conserve=None)
    report.difference_strong = _check_gradients(swapped, inputs, report, plain)
    reverted = hotswap.revert(swapped, inplace=True)
    if type(reverted) is not kind or any(isinstance(m, SwappedConv2d) for m in reverted.modules()):
        raise BrokenPromise("revert leaves something swapped")
    if not same(run(reverted, inputs), plain):
        raise BrokenPromise("the reverted network's outputs are not bit-identical")


# --- the plain network ----------------------------------------------------------------------------------


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


def _running(network: Network, report: Report) -> tuple[nn.Module, Inputs, Calls]:
    torch.manual_seed(0)
    try:
        model = network.build().eval()
    except Exception as error:  # whatever a constructor raises
        raise PlainError(f"cannot be built: {one_line(error)}") from error
    report.parameters = sum(p.numel() for p in model.parameters())
    awaken(model)
    reasons = []
    for size in network.sizes:
        torch.manual_seed(1)
        try:
            inputs = network.inputs(model, size)
            with _norms_fitted(model):
                run(model, inputs)
            calls = _observed(model, inputs)
        except Exception as error:  # noqa: BLE001 (whatever a forward raises; the last reason is reported)
            reasons.append(f"at {size}: {one_line(error)}")
            continue
        report.size = size
        return model, inputs, calls
    raise PlainError(reasons[-1])


def awaken(model: nn.Module) -> None:
    """Fill what fresh networks start at (nearly) zero: it would hide a swap and stop gradients.

    Those are last norms of blocks, layer scales and zero-initialised heads; biases may stay as they are.
    """
    frozen = [(name, x) for name, x in model.named_buffers() if name.endswith("weight")]  # of norms
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *frozen]:
            if not p.is_floating_point() or p.numel() == 0 or (name.endswith("bias") and p.dim() == 1):
                continue
            first = p.flatten()[0]
            if first.abs() < 0.1 and bool((p == first).all()):
                if p.dim() > 1 and p.shape[1:].numel() > 1:
                    p.normal_(0, p[0].numel() ** -0.5)
                else:
                    p.uniform_(0.5, 1.0)


@contextmanager
def _norms_fitted(model: nn.Module) -> Iterator[None]:
    """Let batch norms take the statistics of what they see, so that activations of a fresh network stay near 1."""

    def fit(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        x, kept_mean, kept_variance = arguments[0], norm.running_mean, norm.running_var
        assert isinstance(kept_mean, Tensor)
        assert isinstance(kept_variance, Tensor)
        # One number for all channels: of each by itself, few pixels would be pushed together or torn apart.
        kept_mean.fill_(x.mean())
        kept_variance.fill_(x.var() + 1e-6)

    # Detection networks have frozen ones of their own class.
    norms = [
        m
        for m in model.modules()
        if all(isinstance(getattr(m, f"running_{x}", None), Tensor) for x in ("mean", "var"))
    ]
    handles = [norm.register_forward_pre_hook(fit) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observed(model: nn.Module, inputs: Inputs) -> Calls:
    paths: dict[nn.Module, str] = {m: path for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    called: dict[str, nn.Module] = {}
    batches: dict[str, int] = {}

    def note(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        called.setdefault(paths[module], module)
        batches.setdefault(paths[module], output.shape[0])

    handles = [module.register_forward_hook(note) for module in paths]
    output = run(model, inputs)
    for handle in handles:
        handle.remove()
    if not tensors(output):
        raise PlainError("it returns no floating-point tensor")
    if not all(bool(torch.isfinite(x).all()) for x in tensors(output)):
        raise PlainError("its outputs are not finite")
    candidates = tuple(path for path, module in called.items() if _is_candidate(module))
    return Calls(batches, candidates)


# --- the swapped network --------------------------------------------------------------------------------


def _convert(model: nn.Module, inputs: Inputs, calls: Calls, report: Report) -> nn.Module:
    """With "auto" where that finds stages enough, else the last convolution guided by the first."""
    inplace = report.parameters > _COPIED_UP_TO
    options: Any = {"guide_scale": 0.0, "example_inputs": inputs, "inplace": inplace}
    report.choice = "auto"
    try:
        swapped = hotswap.convert(model, **options)
    except hotswap.HotswapError as error:
        if not str(error).startswith('"auto" needs'):
            raise
        report.choice = "first-last"
        report.notes.append(str(error).partition(";")[0])
        target, guide = _first_and_last(calls)
        swapped = hotswap.convert(model, target, guide, **options)
    plan = hotswap.status(swapped).plan
    assert plan is not None
    report.targets = tuple(swap.target for swap in plan.swaps)
    report.guides = tuple(dict.fromkeys(path for swap in plan.swaps for path in swap.guide))
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
    twin = copy.deepcopy(swapped).double()
    doubled = tuple(_double(x) for x in inputs)
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


def _double(x: Any) -> Any:
    if isinstance(x, list):
        return [_double(item) for item in x]
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _check_gradients(swapped: nn.Module, inputs: Inputs, report: Report, plain: Any) -> float:
    """Gradients must reach each target's weight and what the guide is made by; returns how far outputs moved."""
    for p in swapped.parameters():
        p.requires_grad_(False)
    weights = {path: swapped.get_submodule(path).weight for path in report.targets}
    guides = {p for path in report.guides for p in swapped.get_submodule(path).parameters()}
    sources: list[Any] = [*weights.values(), *guides]
    for x in sources:
        x.requires_grad_(True)
    output = run(swapped, inputs, gradients=True)
    if not _has_gradient(output):
        if _has_gradient(run(hotswap.revert(swapped), inputs, gradients=True)):
            raise BrokenPromise("no output has a gradient")
        report.notes.append("no output has a gradient, and none has in the plain network")
        return difference(output, plain)
    found = _gradients(output, sources)
    for path, gradient in zip([*weights, *["the guide"] * len(guides)], found, strict=True):
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise BrokenPromise(f"the gradient of {path} is not finite")
    reached = [gradient is not None and bool(gradient.any()) for gradient in found]
    missed = [path for path, arrived in zip(weights, reached, strict=False) if not arrived]
    if missed:
        twin = hotswap.revert(swapped)
        unswapped = run(twin, inputs, gradients=True)
        plainly = _gradients(unswapped, [twin.get_submodule(path).weight for path in missed])
        if len(missed) == len(weights) or any(gradient is not None and bool(gradient.any()) for gradient in plainly):
            raise BrokenPromise(f"no gradient reaches {', '.join(missed)}")
        report.notes.append(f"no gradient reaches {', '.join(missed)}, and none does in the plain network")
    if guides and not any(reached[len(weights) :]):
        raise BrokenPromise("no gradient reaches the guide")
    return difference(output, plain)


def _has_gradient(output: Any) -> bool:
    return any(x.requires_grad for x in tensors(output))


def _gradients(output: Any, sources: Sequence[Any]) -> Sequence[Tensor | None]:
    loss = sum(_weighted_sum(x) for x in tensors(output) if x.requires_grad)
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, sources, allow_unused=True)


def _weighted_sum(x: Tensor) -> Tensor:
    """A sum that norms and softmax do not make constant."""
    return (x * torch.linspace(-1, 1, x.numel()).to(x).sin().view(x.shape)).sum() + x.square().sum() / x.numel()


# --- outputs ----------------------------------------------------------------------------------------------


def run(model: nn.Module, inputs: Inputs, *, gradients: bool = False) -> Any:
    """The network's output; random numbers it draws are the same each time."""
    torch.manual_seed(2)
    with torch.set_grad_enabled(gradients):
        return model(*inputs)


def tensors(output: Any) -> list[Tensor]:
    """Every floating-point tensor of an output, however nested."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.numel() else []
    if isinstance(output, Mapping):
        return [x for value in output.values() for x in tensors(value)]
    if isinstance(output, list | tuple):
        return [x for value in output for x in tensors(value)]
    if is_dataclass(output):
        return [x for f in fields(output) for x in tensors(getattr(output, f.name))]
    return []


def difference(a: Any, b: Any) -> float:
    """The largest relative difference of norms over all tensors of two outputs."""
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    if any(x.shape != y.shape for x, y in pairs):
        return math.inf
    return max(float((x - y).detach().double().norm() / (y.double().norm() + 1e-12)) for x, y in pairs)


def same(a: Any, b: Any) -> bool:
    """Whether all tensors of two outputs are equal, bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def one_line(error: BaseException) -> str:
    """Its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
