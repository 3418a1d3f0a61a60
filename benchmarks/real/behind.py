"""Decoders without the frozen networks before them, which are given what those made of an image."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.real.camvid import CLASSES
from benchmarks.real.networks import AtOnceDecoder
from recipes.networks.fcn8s import STAGES, FCN8s

Maps = tuple[Tensor, ...]  # of one image: the guide, [1, G, H/8, W/8], then what the decoder starts from
HIDDEN = 512  # of our FCN-8s


class AtOnceBehind(AtOnceDecoder):
    """Of EfficientNet-Lite0: begins with the encoder's maps at 1/8, 1/16 and 1/32; its map at 1/4 may guide."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Identity()

    def forward(self, image: Tensor, early: Tensor, eighth: Tensor, sixteenth: Tensor, last: Tensor) -> Tensor:
        """Scores of the classes, [B, 11, H, W]."""
        self.early(early)
        return self.decoded((eighth, sixteenth, last), image.shape[2:])


class Fcn8sBehind(FCN8s):
    """Of FCN-8s: begins behind its fourth stage; its second stage, pooled, may guide."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__(len(CLASSES), hidden=hidden)
        for stage, (*_, count) in enumerate(STAGES[:4], start=1):
            convolutions = [f"{kind}{stage}_{n}" for kind in ("conv", "relu") for n in range(1, count + 1)]
            for name in (*convolutions, f"pool{stage}"):
                delattr(self, name)
        for enlargement in (self.upscore2, self.upscore_pool4, self.upscore8):
            enlargement.requires_grad_(False)  # as published
        self.early = nn.Identity()

    def forward(self, image: Tensor, early: Tensor, pool3: Tensor, pool4: Tensor) -> Tensor:  # type: ignore[override]
        """Scores of the classes, [B, 11, H, W]."""
        self.early(early)
        return self.scores(pool3, pool4, image.shape[2], image.shape[3])


def _fcn8s() -> nn.Module:
    return FCN8s(len(CLASSES), hidden=HIDDEN)


def _stages(network: nn.Module, image: Tensor) -> Maps:
    maps = network.get_submodule("encoder")(image)
    return _shrunk(maps[1], maps[2]), *maps[2:]


def _pools(network: nn.Module, image: Tensor) -> Maps:
    assert isinstance(network, FCN8s)
    second: list[Tensor] = []
    with network.get_submodule("pool2").register_forward_hook(lambda _, __, output: second.append(output)):
        pool3, pool4 = network.skips(image)
    return _shrunk(second[0], pool3), pool3, pool4


def _shrunk(early: Tensor, coarse: Tensor) -> Tensor:
    """A guide at the size of the largest map that a decoder begins with, as layers there take it."""
    size = (coarse.shape[2], coarse.shape[3])
    return F.interpolate(early, size, mode="bilinear", antialias=True)


class Place(NamedTuple):
    """A network's decoder, its convolutions of 3 x 3 pixels, and how it is tuned."""

    decoder: Callable[[], nn.Module]
    maps: Callable[[nn.Module, Tensor], Maps]  # of the whole network and a normalised image
    last: str  # the last convolution of the stage, as in the paper
    all: tuple[str, ...]
    batch: int  # crops or frames a step
    whole: bool  # it is tuned on whole frames: its windows are larger than crops
    rates: tuple[float, ...]  # of these each arm's is chosen
    slower: int = 1  # by so much less than that the decoder's own weights are moved
    network: Callable[[], nn.Module] | None = None  # the whole, where it can be built of its weights alone

    def trained(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The decoder with its part of a whole network's weights, in evaluation."""
        decoder = self.decoder()
        decoder.load_state_dict({key: state[key].float() for key in decoder.state_dict()})
        return decoder.eval()


PLACES = {
    "at_once": Place(AtOnceBehind, _stages, "head.0.0", ("head.0.0",), 4, False, (1e-4, 4e-4, 1.6e-3)),
    "fcn8s": Place(
        Fcn8sBehind,
        _pools,
        "conv5_3",
        ("conv5_1", "conv5_2", "conv5_3"),
        2,
        True,
        (1e-4, 4e-4),
        slower=64,
        network=_fcn8s,
    ),
}


@torch.no_grad()
def maps_of(name: str, network: nn.Module, image: Tensor) -> Maps:
    """What the frozen part of a network makes of a normalised image, [1, 3, H, W], in 16 bits: [C, h, w] each."""
    return tuple(x[0].half().cpu() for x in PLACES[name].maps(network, image))
