"""FCN-8s behind its first four stages, which are frozen: what they make of a frame is computed once, and kept."""

import random
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from benchmarks.real.camvid import Frame, normalised
from benchmarks.real.networks import fcn8s

BATCH = 4  # frames
_STAGE = re.compile(r"(conv|relu|pool)[1-4](_\d)?")  # the names of what is frozen


def front_of(name: str) -> "Front | None":
    """What is kept of the network of this name; None where nothing is."""
    return Front() if name == "fcn8s" else None


def behind(front: "Front | None", network: nn.Module) -> AbstractContextManager[None]:
    """In this block a network, swapped or not, begins behind its front, if it has one."""
    return nullcontext() if front is None else front.attached(network)


class _Given(nn.Module):
    """In place of the first convolution of some stages: what they end with."""

    def __init__(self, front: "Front", index: int) -> None:
        super().__init__()
        self._front, self._index = [front], index  # in a list, as a network that holds it is copied

    def forward(self, _: Tensor) -> Tensor:
        return self._front[0].shown[self._index]


class Front:
    """The frozen stages, and what they made of the frames that were shown, in 16 bits: 4 MB a frame."""

    def __init__(self) -> None:
        self._network = fcn8s().eval()
        self._kept: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}
        self.shown: tuple[Tensor, Tensor]

    @torch.no_grad()
    def show(self, *views: tuple[Frame, bool]) -> tuple[Tensor, Tensor]:
        """Frames, each mirrored or not, as the networks are fed, [B, 3, H, W], and their labels, [B, H, W].

        It is what attached networks see from now on.
        """
        images, labels = [], []
        for frame, mirrored in views:
            image, drawn = (x.flip(-1) if mirrored else x for x in (frame.image, frame.labels))
            images.append(normalised(image))
            labels.append(drawn.long())
            if (frame.name, mirrored) not in self._kept:
                pool3, pool4 = self._network.skips(images[-1][None])
                self._kept[frame.name, mirrored] = pool3.half(), pool4.half()
        maps = zip(*(self._kept[frame.name, mirrored] for frame, mirrored in views), strict=True)
        pool3, pool4 = (torch.cat(kept).float() for kept in maps)
        self.shown = pool3, pool4
        return torch.stack(images), torch.stack(labels)

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """In this block a network, swapped or not, begins behind the frozen stages, with the frame that is shown."""
        names = [name for name, _ in network.named_children() if _STAGE.fullmatch(name)]
        before = {name: network.get_submodule(name) for name in names}
        given = {"conv1_1": _Given(self, 0), "conv4_1": _Given(self, 1)}
        try:
            for name in names:
                setattr(network, name, given.get(name, nn.Identity()))
            yield
        finally:
            for name, module in before.items():
                setattr(network, name, module)

    def frames(self, train: list[Frame], steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of frames, each mirrored or not."""
        draw = random.Random(seed)  # noqa: S311 (no secret)
        for _ in range(steps):
            yield self.show(*((draw.choice(train), draw.random() < 0.5) for _ in range(BATCH)))
