"""What an arm does to its network after its swaps: controls that tell which part of a swap helps, and CRFs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hotswap
from benchmarks.evidence import config
from benchmarks.evidence.crf import with_dense_crf, with_pac_crf
from hotswap.network.dry_run import Inputs, mode
from hotswap.targets.convolution import SwappedLayer
from hotswap.targets.forward_ops import Shared
from hotswap.targets.guided_layer import GuidedLayer

INPUT, OUTPUT = "input", "output"


def apply(model: nn.Module, control: config.Changed | None, example: Inputs) -> nn.Module:
    """The network of an arm; the one given may be changed.

    Args:
        model: as its recipe builds it, swapped and calibrated.
        control: None leaves it as it is.
        example: what it takes.
    """
    match control:
        case None:
            return model
        case config.ShuffledGuide():
            return shuffle_guides(model)
        case config.FrozenKernel():
            return freeze_kernels(model)
        case config.Skip():
            return add_skip(model, control.source, control.target, example)
        case config.PacCrf():
            return with_pac_crf(model, control.dilations, example)
        case config.DenseCrf():
            return with_dense_crf(model, control.kind)


def shuffle_guides(model: nn.Module) -> nn.Module:
    """Let every swapped layer be guided by the next image of the batch, which has nothing to do with its input.

    Batches must hold two images or more.
    """

    def shuffle(_: nn.Module, args: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "guides" in keywords:
            return args, {"guides": _next_images(keywords["guides"])}
        return (args[0], _next_images(args[1]), *args[2:]), keywords  # and what else F.interpolate takes

    for module in model.modules():
        if isinstance(module, GuidedLayer):
            module.register_forward_pre_hook(shuffle, with_kwargs=True)
    return model


def _next_images(guides: Any) -> Any:
    if isinstance(guides, Shared):  # distances lie within each guide
        return guides._replace(guides=_next_images(guides.guides), distance=_next_image(guides.distance))
    return tuple(map(_next_image, guides))


def _next_image(x: Tensor) -> Tensor:
    if x.shape[0] < 2:
        raise ValueError("shuffled_guide needs batches of two images or more, also to measure")
    return x.roll(1, 0)


def freeze_kernels(model: nn.Module) -> nn.Module:
    """The plain network, its filters multiplied by the mean K at each tap: as strong as the swapped one, and blind.

    The network must have been calibrated to conserve the mean, which is how the means are known.
    """
    means = {
        name: torch.tensor(module.swap.tap_means).view(module.swap.kernel_size)
        for name, module in model.named_modules()
        if isinstance(module, SwappedLayer)
    }
    plain = hotswap.revert(model)
    with torch.no_grad():
        for name, mean in means.items():
            plain.get_parameter(f"{name}.weight").mul_(mean)
    return plain


class Skip(nn.Module):
    """A 3 x 3 convolution from a guide to a target's output, 0 at first: what a plain network can do with a guide."""

    def __init__(self, guide: int, target: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(guide, target, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, guide: Tensor, target: Tensor) -> Tensor:
        """What the guide says, at the target's size, added to the target."""
        size = (target.shape[2], target.shape[3])
        seen = F.interpolate(guide, size, mode="bilinear", align_corners=False, antialias=True)
        added: Tensor = target + self.conv(seen)
        return added


def add_skip(model: nn.Module, source: str, target: str, example: Inputs) -> nn.Module:
    """Add a `Skip` from a module's output, after a ReLU, or the network's input to a module's or its output."""
    seen: dict[str, Tensor] = {}
    from_input = source == INPUT
    origin = model if from_input else model.get_submodule(source)
    end = model if target == OUTPUT else model.get_submodule(target)

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        seen["guide"] = F.relu(output)

    def keep_input(_: nn.Module, args: Any) -> None:
        seen["guide"] = args[0]

    def probe(_: nn.Module, args: Any, output: Any) -> None:
        seen["target"] = output

    handles = [
        origin.register_forward_pre_hook(keep_input) if from_input else origin.register_forward_hook(keep),
        end.register_forward_hook(probe),
    ]
    with torch.no_grad(), mode(model, training=False):  # or norms would learn from it
        model(example)
    handles[1].remove()
    skip = Skip(seen["guide"].shape[1], seen.pop("target").shape[1])
    model.add_module("skip", skip)
    end.register_forward_hook(lambda _, __, output: skip(seen["guide"], output))
    return model
