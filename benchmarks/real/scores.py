"""Scores of real networks before their last enlargement: `python -m benchmarks.real.scores PAIR --out FOLDER`."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.real import camvid
from benchmarks.real.places import shared
from hotswap.errors import HotswapError
from hotswap.files.atomic import atomic_write
from hotswap.network.predictions import Layout
from hotswap.searching.tasks import Classes, OneClass, Task

DEEPLAB = "nets/deeplabv3_mobilenetv2_voc_257.onnx"
_SIDE = 257  # of the images that network takes
_LAST = "ResizeBilinear_3"  # its last enlargement
_HORSE, _MASK_ABOVE = 13, 127


class Sample(NamedTuple):
    """One image, its label, and the scores that are to be enlarged to its size."""

    name: str
    image: Tensor  # uint8 [3, H, W]
    labels: Tensor  # int64 [H, W]
    scores: Tensor  # [1, C, h, w]


@dataclass(frozen=True)
class Pair:
    """A network and a set of labelled images."""

    title: str
    align_corners: bool
    choosing: int  # of the samples, by name, the first so many; the others are reported on
    step: int = 1  # every so many of those are chosen on
    wanted: int | None = None  # the class the labels are a mask of; None where they are labels of all classes
    ignore: int = 255
    crop: int | None = None  # so many coarse pixels a side of each crop, for what takes too long on whole images
    grid: tuple[int, int] = (1, 1)  # crops beside each other, down and across, about the middle

    def task(self) -> Task:
        """The metrics, of labels."""
        layout = Layout("", (1, 1, 1), channels_last=False, labels=True, threshold=0.0)
        if self.wanted is None:
            return Classes(layout, self.ignore)
        return OneClass(layout, self.ignore, self.wanted, masks=True)

    def split(self, samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Those to choose on, and those to report on."""
        return samples[: self.choosing : self.step], samples[self.choosing :]

    def parts(self, sample: Sample) -> list[Sample]:
        """The crops of an image; the image itself where there are none."""
        if self.crop is None:
            return [sample]
        rows, columns = (self._cuts(sample, axis, self.crop) for axis in (2, 3))
        return [
            sample._replace(
                image=sample.image[:, fine_rows, fine_columns],
                labels=sample.labels[fine_rows, fine_columns],
                scores=sample.scores[:, :, coarse_rows, coarse_columns],
            )
            for (fine_rows, coarse_rows), (fine_columns, coarse_columns) in itertools.product(rows, columns)
        ]

    def _cuts(self, sample: Sample, axis: int, side: int) -> list[tuple[slice, slice]]:
        """Fine and coarse pixels of each crop along an axis, cut where pixels of both maps begin."""
        ends = 1 if self.align_corners else 0  # pixels lie on each other at both ends
        n, m = sample.scores.shape[axis], sample.image.shape[axis - 1]
        factor, count = (m - ends) // (n - ends), self.grid[axis - 2]
        begin = (n - count * side) // 2
        return [
            (slice(factor * first, factor * (first + side) + ends), slice(first, first + side + ends))
            for first in range(begin, begin + count * side, side)
        ]


LONGER = "_longer"  # ends the names of pairs whose network, in a folder in that of the others, was trained for longer
_STREETS = "CamVid, EfficientNet-Lite0"
PAIRS = {
    "horses": Pair("Weizmann horses, DeepLabV3 with MobileNetV2, x8", True, 40, wanted=_HORSE),
    "camvid_at_once": Pair(f"{_STREETS}, x8 at once", False, 50, 5, ignore=camvid.VOID),
    f"camvid_at_once{LONGER}": Pair(
        f"{_STREETS}, x8 at once, trained for 4,400 steps", False, 50, 5, ignore=camvid.VOID
    ),
    "camvid_pyramid": Pair(f"{_STREETS}, feature pyramid, x4", False, 50, 5, ignore=camvid.VOID),
    "camvid_ladder": Pair(f"{_STREETS}, U-Net's ladder, its last x2", False, 50, 5, ignore=camvid.VOID),
    "camvid_fcn8s": Pair("CamVid, FCN-8s on HED's VGG16, x8", False, 50, 5, ignore=camvid.VOID),
}
# Their middle of about 128 x 128 pixels, or six such crops about it.
CROPS = {
    f"{name}_crops": replace(PAIRS[name], title=f"{PAIRS[name].title}; crops", step=step, crop=side, grid=grid)
    for name, step, side, grid in (
        ("horses", 4, 16, (1, 1)),
        ("camvid_at_once", 5, 16, (1, 1)),
        ("camvid_pyramid", 5, 32, (2, 3)),
        ("camvid_ladder", 5, 64, (2, 3)),
        ("camvid_fcn8s", 5, 16, (1, 1)),
    )
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(PAIRS)))
@click.option("--nets", type=click.Path(path_type=Path), help="The folder of benchmarks.real.train, for CamVid.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the training, for CamVid.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder for PAIR.pt.")
def main(names: tuple[str, ...], nets: Path | None, seed: int, out: Path) -> None:
    """Keep scores, images and labels in files; those that are there stay as they are."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name in names or PAIRS:
            if not (out / f"{name}.pt").exists():
                samples = list(_horses() if name == "horses" else _streets(name.removeprefix("camvid_"), nets, seed))
                write(samples, out / f"{name}.pt")
                click.echo(f"{name}: {len(samples)} images, scores {list(samples[0].scores.shape[1:])}")
    except (HotswapError, ImportError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error


def write(samples: list[Sample], path: Path) -> None:
    """Write samples, in one step."""
    with atomic_write(path) as temporary:
        torch.save([tuple(each._replace(labels=each.labels.to(torch.uint8))) for each in samples], temporary)


def read(path: Path) -> list[Sample]:
    """Read what `write` wrote.

    Raises:
        HotswapError: where there is no such file.
    """
    if not path.exists():
        raise HotswapError(f"there is no {str(path)!r}; make it by python -m benchmarks.real.scores {path.stem}")
    samples = [Sample(*values) for values in torch.load(path, weights_only=True)]
    return [each._replace(labels=each.labels.long()) for each in samples]


def deeplab() -> nn.Module:
    """The network of the horses."""
    import onnx
    import onnx2torch

    network: nn.Module = onnx2torch.convert(onnx.load(shared(DEEPLAB)))
    return network.eval()


@torch.no_grad()
def _horses() -> Iterator[Sample]:
    folder = shared("data/horses")
    model = deeplab()
    caught: list[Tensor] = []
    model.get_submodule(_LAST).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    size = (_SIDE, _SIDE)
    for path in sorted(folder.glob("*.jpg")):
        photograph = Image.open(path).convert("RGB")
        mask = (
            Image.open(folder / "masks" / path.name).convert("L").resize(photograph.size, Image.Resampling.BILINEAR)
        )
        image = torch.from_numpy(np.array(photograph.resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1)
        labels = torch.from_numpy(np.array(mask.resize(size, Image.Resampling.BILINEAR))) > _MASK_ABOVE
        model(image[None] / 127.5 - 1)
        yield Sample(path.stem, image.contiguous(), labels.long(), caught.pop().clone())


@torch.no_grad()
def _streets(name: str, nets: Path | None, seed: int) -> Iterator[Sample]:
    from benchmarks.real.train import trained

    if nets is None:
        raise HotswapError("--nets must be the folder with networks trained by benchmarks.real.train")
    if name.endswith(LONGER):
        name, nets = name.removesuffix(LONGER), nets / LONGER[1:]
    model = trained(name, seed, nets)
    caught: list[Tensor] = []

    def keep(module: nn.Module, args: Any, scores: Tensor) -> None:
        caught.append(scores)

    if name == "fcn8s":
        model.get_submodule("upscore8").register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    else:
        model.get_submodule("head").register_forward_hook(keep)
    for frame in camvid.frames("val"):
        model(camvid.normalised(frame.image)[None])
        yield Sample(frame.name, frame.image, frame.labels.long(), caught.pop().clone())


if __name__ == "__main__":
    main()
