"""What guiding the enlargement of a network's scores gains before any training, in numbers and one picture.

On a DeepLabV3 and photographs of horses with masks drawn by hand, where they lie beside the repository (neither may
be copied into it); elsewhere on a stand-in, which says what it is: a small network and procedural scenes.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

import hotswap
from hotswap.colours import Pixels
from recipes.backbones import SmallSegmenter
from recipes.finetune import evaluate, finetune
from recipes.pictures import pixels, sheet
from recipes.scenes import Scenes

SHARED = Path(__file__).resolve().parents[2] / "shared"
NETWORK, HORSES = Path("nets", "deeplabv3_mobilenetv2_voc_257.onnx"), Path("data", "horses")
SIZE, HORSE = 257, 13  # of the network's images, and which of its classes it is
FIRST, COUNT = 40, 24  # the images after those that defaults were chosen on
STEPS, SCENES = 120, 160  # of the stand-in's training

Pair = tuple[Tensor, Tensor]  # an image as the network takes it, [3, H, W], and its classes, [H, W]


class Pairs(Dataset[Pair]):
    """Images with labels in a list."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]


@dataclass(frozen=True)
class Subject:
    """A trained network, images that it has not seen, with labels, and what these are, in words."""

    network: nn.Module
    data: Pairs
    words: str
    asked: Callable[[nn.Module], nn.Module] = lambda network: network  # gives its scores of the labels' classes
    mean: float = 0.0  # of images as the network takes them
    std: float = 1.0


class HorseOrNot(nn.Module):
    """Two classes of a network's many."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Scores of all other classes together, and of the horse: [B, 2, H, W]."""
        scores = self.network(image)
        others = torch.cat([scores[:, :HORSE], scores[:, HORSE + 1 :]], dim=1)
        return torch.stack([others.amax(dim=1), scores[:, HORSE]], dim=1)


def show_gain(out: Path, console: Console) -> tuple[nn.Module, nn.Module, Tensor, Path]:
    """Print what guiding gains, and write a picture: the network, it guided, an image, the file."""
    subject = horses() if found_beside() else stand_in(console)
    samples = [subject.data[index][0][None] for index in range(2)]
    guided = hotswap.convert(subject.network, "resize", "input", calibrate_on=samples)
    networks = {"plain": subject.asked(subject.network), "guided": subject.asked(guided)}
    scores = {name: evaluate(network, subject.data, batch_size=1) for name, network in networks.items()}
    console.print(f"{subject.words}.")
    gain = 100 * (scores["guided"] - scores["plain"])
    console.print(
        f"Mean IoU: {scores['plain']:.1%} as it is, {scores['guided']:.1%} with its enlargement guided by the image "
        f"({gain:+.1f} points), before any training, with the same weights."
    )
    path = out / "sharper.png"
    rows = [_row(subject, networks, index) for index in range(4)]  # the first ones, not the best ones
    sheet(f"{subject.words}: wrong pixels red", rows, width=300).save(path)
    return subject.network, guided, samples[0], path


def found_beside() -> bool:
    """Whether network and photographs lie beside the repository, and what reads them is installed."""
    there = (SHARED / NETWORK).is_file() and (SHARED / HORSES).is_dir()
    return there and find_spec("onnx") is not None and find_spec("onnx2torch") is not None


def horses() -> Subject:
    """The DeepLabV3, and photographs with masks drawn by hand."""
    files = sorted((SHARED / HORSES).glob("*.jpg"))[FIRST : FIRST + COUNT]
    words = f"DeepLabV3 with MobileNetV2, {len(files)} photographs of horses with masks drawn by hand"
    pairs = Pairs([(_opened(file), _mask(file.parent / "masks" / file.name)) for file in files])
    return Subject(deeplab(), pairs, words, HorseOrNot, 0.5, 0.5)


def deeplab() -> nn.Module:
    """A DeepLabV3 with MobileNetV2, trained on VOC: images in -1..1, [B, 3, 257, 257] -> scores of 21 classes."""
    import onnx
    import onnx2torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: nn.Module = onnx2torch.convert(onnx.load(SHARED / NETWORK))
    return network.eval()


def stand_in(console: Console) -> Subject:
    """A small network, trained here in seconds to tell shapes from their background, and procedural scenes."""
    torch.manual_seed(0)
    network = SmallSegmenter(classes=2)
    train, test = (_shapes(count, seed) for count, seed in ((SCENES, 0), (COUNT, 1)))
    finetune(network, train, steps=STEPS, batch_size=8, lr=2e-3, label="the stand-in", console=console)
    words = f"A stand-in for a real network: small, trained here, on {COUNT} procedural scenes"
    return Subject(network.eval(), test, words)


def _shapes(count: int, seed: int) -> Pairs:
    scenes = Scenes(count, size=96, seed=seed)
    return Pairs([(image, (labels > 0).long()) for image, labels in (scenes[index] for index in range(count))])


def _opened(file: Path) -> Tensor:
    with Image.open(file) as image:
        small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1) / 127.5 - 1


def _mask(file: Path) -> Tensor:
    with Image.open(file) as image:
        small = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small) > 127).long()


def _row(subject: Subject, networks: dict[str, nn.Module], index: int) -> list[tuple[str, Pixels]]:
    image, labels = subject.data[index]
    shown = image * subject.std + subject.mean
    panels = [("input", pixels(shown)), ("label", pixels(labels[None] / labels.max().clamp_min(1)))]
    for name, network in networks.items():
        with torch.no_grad():
            wrong = network(image[None])[0].argmax(dim=0) != labels
        red = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
        panels.append((f"{name}: {wrong.float().mean():.1%} wrong", pixels(torch.where(wrong, red, 0.6 * shown))))
    return panels
