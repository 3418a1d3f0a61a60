"""Frames with what a frozen network makes of them, and that network's decoder, in one file."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.real.behind import PLACES, Maps, maps_of
from benchmarks.real.camvid import Frame, decoded, encoded, normalised
from hotswap.errors import HotswapError
from hotswap.files.atomic import atomic_write

CROP = (192, 256)
GRID = 32  # pixels: where pixels of all maps begin
_CPU = torch.device("cpu")
_OVERHEAD = 2048  # bytes of a file for each frame beside its own, at most


class Sample(NamedTuple):
    """A frame or a part of it, and what the frozen part of a network made of the frame there."""

    image: Tensor  # uint8 [3, H, W]
    labels: Tensor  # uint8 [H, W]
    maps: Maps  # float16 [C, h, w]; the guide, then what the decoder begins with

    def cut(self, top: int, left: int) -> "Sample":
        """The part of `CROP` from a pixel of the grid on."""

        def part(x: Tensor) -> Tensor:
            step = _step(self.labels, x)
            rows, columns = (
                slice(first // step, (first + n) // step) for first, n in zip((top, left), CROP, strict=True)
            )
            return x[..., rows, columns].clone()

        return Sample(part(self.image), part(self.labels), tuple(map(part, self.maps)))

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(x.nbytes for x in (self.image, self.labels, *self.maps))

    @property
    def room(self) -> tuple[int, int]:
        """How many steps of the grid a part of `CROP` can be moved down, and to the right."""
        down, right = ((n - crop) // GRID for n, crop in zip(self.labels.shape, CROP, strict=True))
        return down, right


class Kept(NamedTuple):
    """What a trial needs."""

    name: str
    decoder: nn.Module
    train: list[Sample]
    choosing: list[Sample]
    reporting: list[Sample]


class Batch(NamedTuple):
    """What a decoder is given, and what is right."""

    inputs: tuple[Tensor, ...]  # images [B, 3, H, W], guides, maps
    labels: Tensor  # [B, H, W]


def spread(every: Sequence[Frame], count: int) -> list[Frame]:
    """So many frames at even distances, as neighbours are of one drive."""
    return [every[index * len(every) // count] for index in range(min(count, len(every)))]


def sample(name: str, network: nn.Module, frame: Frame) -> Sample:
    """A frame with its maps."""
    device = next(network.parameters(), frame.image).device
    return Sample(frame.image, frame.labels, maps_of(name, network, normalised(frame.image)[None].to(device)))


def write(name: str, network: nn.Module, parts: Sequence[Sequence[Sample]], path: Path) -> None:
    """Keep the samples to train on, to choose on and to report on, and the decoder's weights."""
    state = {key: network.state_dict()[key] for key in PLACES[name].decoder().state_dict()}
    with atomic_write(path) as temporary:
        torch.save({"name": name, "state": state, "parts": [[tuple(x) for x in part] for part in parts]}, temporary)


def pack(name: str, network: nn.Module, parts: Sequence[Sequence[Frame]], path: Path, limit: float) -> None:
    """Keep weights in 16 bits, and as many frames as fit into so many MiB beside them.

    Where the whole network can be built from these weights alone, they are lossy pictures, of which `read` makes
    maps; else one crop of each with its maps.

    Raises:
        HotswapError: where there is no room for any.
    """
    if PLACES[name].network is None:
        draw = random.Random(0)  # noqa: S311 (no secret)
        samples = [[cut_at_random(sample(name, network, frame), draw) for frame in part] for part in parts]
        every = [[(x.size, tuple(x)) for x in part] for part in samples]
        keys = PLACES[name].decoder().state_dict().keys()
    else:
        pictures = [[encoded(frame) for frame in part] for part in parts]
        every = [[(sum(x.nbytes for x in pair), pair) for pair in part] for part in pictures]
        keys = network.state_dict().keys()
    state = {key: x.half() if x.is_floating_point() else x for key, x in network.state_dict().items() if key in keys}
    room = 0.99 * limit * 2**20 - sum(x.nbytes for x in state.values())
    share = min(1.0, max(0.0, room / sum(size + _OVERHEAD for part in every for size, _ in part)))
    fitting = [[values for _, values in part[: int(share * len(part))]] for part in every]
    if not all(fitting):
        raise HotswapError(f"--packed must have room for the weights and for frames of each part, got {limit:g} MiB")
    with atomic_write(path) as temporary:
        torch.save({"name": name, "state": state, "parts": fitting}, temporary)


def read(path: Path, device: torch.device = _CPU) -> Kept:
    """What `write` or `pack` wrote; maps of pictures are made on a device, and kept on the CPU.

    Raises:
        HotswapError: where there is no such file.
    """
    if not path.exists():
        raise HotswapError(f"there is no {str(path)!r}; make it by python -m benchmarks.real.trial keep")
    data = torch.load(path, weights_only=True)
    place, state = PLACES[data["name"]], data["state"]
    if len(data["parts"][0][0]) == len(Sample._fields):
        train, choosing, reporting = ([Sample(*x) for x in part] for part in data["parts"])
    else:
        assert place.network is not None
        network = place.network()
        network.load_state_dict({key: x.float() if x.is_floating_point() else x for key, x in state.items()})
        network.to(device).eval()
        train, choosing, reporting = (
            [sample(data["name"], network, decoded(str(index), *x)) for index, x in enumerate(part)]
            for part in data["parts"]
        )
    return Kept(data["name"], place.trained(state), train, choosing, reporting)


def batch(samples: Sequence[Sample], device: torch.device) -> Batch:
    """Samples of one size."""
    images = torch.stack([normalised(x.image) for x in samples])
    maps = (torch.stack(maps).to(device).float() for maps in zip(*(x.maps for x in samples), strict=True))
    return Batch((images.to(device), *maps), torch.stack([x.labels for x in samples]).to(device).long())


def crops(samples: Sequence[Sample], steps: int, size: int, seed: int, device: torch.device) -> Iterator[Batch]:
    """Batches of parts of samples, drawn at random."""
    draw = random.Random(seed)  # noqa: S311 (no secret)
    for _ in range(steps):
        yield batch([cut_at_random(draw.choice(samples), draw) for _ in range(size)], device)


def wholes(samples: Sequence[Sample], steps: int, size: int, seed: int, device: torch.device) -> Iterator[Batch]:
    """Batches of different whole samples, drawn at random."""
    draw = random.Random(seed)  # noqa: S311 (no secret)
    for _ in range(steps):
        yield batch(draw.sample(samples, size), device)


def cut_at_random(whole: Sample, draw: random.Random) -> Sample:
    """A part of a sample somewhere on the grid."""
    down, right = whole.room
    return whole.cut(GRID * draw.randint(0, down), GRID * draw.randint(0, right))


def _step(labels: Tensor, x: Tensor) -> int:
    """How many pixels of the labels a pixel of a map is wide: a power of 2, as coarse maps are rounded up."""
    return 1 << round(float(torch.tensor(labels.shape[-1] / x.shape[-1]).log2()))
