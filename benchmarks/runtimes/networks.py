"""The networks that are taken to runtimes: random weights, as runtimes do not mind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

import hotswap

SIZE = 256


@dataclass(frozen=True)
class Subject:
    """A network, and what is swapped in it."""

    title: str
    make: Callable[[], nn.Module]
    swaps: dict[str, Any]


def _fpn() -> nn.Module:
    import segmentation_models_pytorch as smp

    made: nn.Module = smp.FPN("resnet18", encoder_weights=None, classes=11)
    return made


_BARE: dict[str, Any] = {"weights": None, "weights_backbone": None}
SUBJECTS = {
    "lraspp": Subject(
        "lraspp, both enlargements guided",
        partial(torchvision.models.segmentation.lraspp_mobilenet_v3_large, **_BARE),
        {"targets": "resize_*", "guide": "input"},
    ),
    "fpn": Subject("FPN on ResNet-18, every enlargement guided", _fpn, {"targets": "resize_*", "guide": "input"}),
    "resnet18": Subject(
        "ResNet-18, three convolutions swapped",
        partial(torchvision.models.resnet18, weights=None),
        {"targets": ["layer2.1.conv1", "layer3.1.conv1", "layer4.1.conv1"], "guide": "layer1", "guide_scale": 0.1},
    ),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A network as it was and swapped, and an image."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    plain, image = subject.make().eval(), torch.rand(1, 3, SIZE, SIZE)
    return plain, hotswap.convert(plain, example_inputs=image, **subject.swaps), image
