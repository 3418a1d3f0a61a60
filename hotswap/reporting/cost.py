"""The cost of swaps: time and memory of each target and of the whole network, beside the plain ones."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hotswap.measure.compare import Swapped
from hotswap.network.dry_run import device_of, mode, removed_afterwards
from hotswap.reporting.samples import Progress, Sample
from hotswap.reporting.timing import MOST_ROUNDS, ROUNDS, Run, Use, measured
from hotswap.targets.enlargement import GuidedInterpolate
from hotswap.targets.forward_ops import Shared

_STEADY = 0.3  # quartile range of a network's times, relative to their median


@dataclass(frozen=True)
class Cost:
    """The cost of one target, or of the network."""

    plain: Use
    swapped: Use

    @property
    def time_ratio(self) -> float:
        """Swapped over plain."""
        return self.swapped.milliseconds / max(self.plain.milliseconds, 1e-9)


@dataclass(frozen=True)
class Costs:
    """The costs of a network and its targets, on one image."""

    network: Cost
    targets: Mapping[str, Cost]  # those that the image reached
    conditions: str  # how this was measured

    @property
    def unsteady(self) -> bool:
        """Whether the network's times vary so much that the machine must have been busy."""
        return max(self.network.plain.spread, self.network.swapped.spread) > _STEADY


def measure(
    model: nn.Module,
    plain: nn.Module,
    layers: Mapping[str, Swapped],
    sample: Sample,
    progress: Progress,
) -> Costs:
    """Time the network and each target on one image, beside their plain twins."""
    device = device_of(model)
    steps = iter(progress(range(len(layers)), len(layers), "timing targets"))
    costs: dict[str, Cost] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(layer: Swapped, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if name not in costs:
                next(steps, None)
                arguments = (*given, *keywords.values())  # the input, the guides, and what else an enlargement gets
                costs[name] = _of_target(name, layer, arguments, plain, device)

        return hook

    with mode(model, training=False), mode(plain, training=False), torch.no_grad():
        network = _side_by_side(
            lambda: plain(*_copied(sample.arguments)), lambda: model(*_copied(sample.arguments)), device
        )
        # Each target is timed while the network runs, so that no input has to be stored.
        hooks = (x.register_forward_pre_hook(hook_for(name), with_kwargs=True) for name, x in layers.items())
        with removed_afterwards(hooks):
            model(*_copied(sample.arguments))
    next(steps, None)  # the bar is full
    return Costs(network, costs, _conditions(device, sample))


def _of_target(
    name: str,
    layer: Swapped,
    arguments: tuple[Any, ...],
    plain: nn.Module,
    device: torch.device,
) -> Cost:
    input, guides, *further = arguments
    if isinstance(guides, Shared):  # whose distances are made already
        guides = guides.guides
    forward: Callable[..., Any] = layer.forward  # without hooks, which would be timed too
    if isinstance(layer, GuidedInterpolate):
        stock: Callable[..., Any] = layer._plain
    else:
        stock = plain.get_submodule(name).forward
    return _side_by_side(lambda: stock(input, *further), lambda: forward(input, guides, *further), device)


def _side_by_side(plain: Run, swapped: Run, device: torch.device) -> Cost:
    before, after = measured([plain, swapped], device)
    return Cost(before, after)


def _copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    copies: tuple[Any, ...] = pytree.tree_map_only(Tensor, torch.clone, arguments)
    return copies


def _conditions(device: torch.device, sample: Sample) -> str:
    shapes = " and ".join(" x ".join(map(str, x.shape)) for x in sample.arguments if isinstance(x, Tensor))
    where = device.type
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        where = f"{_processor()}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return (
        f"Median of {ROUNDS} alternating runs or, where they are short, up to {MOST_ROUNDS}, of plain and swapped, "
        "after one to warm up, forward only, on the first "
        f"image ({shapes}); {where}. Memory: tensors made during a call, at most at one time; scratch space inside "
        "an operation is not counted."
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
