"""The pictures of README and docs/how.md, made by the library.

python -m tools.pictures docs/pictures
"""

from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import hotswap
import pac_ops
from examples import sharper
from examples.pictures import kernel_sheet, photograph
from hotswap.colours import Pixels
from recipes.pictures import pixels, sheet

ROWS, COLUMNS = slice(60, 316), slice(90, 410)  # of the photograph: a cup, its saucer, a spoon, the table
PLACES = [(91, 192), (61, 85), (216, 250)]  # in that part: the coffee, the rim of the cup, the spoon
PERSON, BACKGROUND = 15, (0.1, 0.55, 0.35)  # of VOC's classes; a colour
QUALITY, WIDTH = 80, 360  # of JPEG; of a photograph in a sheet


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    photo = photograph("coffee")[..., ROWS, COLUMNS]
    for name, draw in PICTURES.items():
        draw(photo).save(folder / f"{name}.jpg", quality=QUALITY)
    if sharper.found_beside():
        cut_out(photograph("astronaut")).save(folder / "sharper.jpg", quality=QUALITY)
    else:
        click.echo(f"sharper.jpg stays as it is: its network lies in {sharper.SHARED}, which is not there")


def one_filter(photo: Tensor) -> Image.Image:
    """The same averaging filter as a convolution, and pixel-adaptive at rising guide scales."""

    def averaged(scale: float) -> Tensor:
        kernel, _ = pac_ops.packernel2d(photo * scale, kernel_size=9, padding=4, normalize_kernel=True)
        return pac_ops.pacpool2d(photo, kernel, kernel_size=9, stride=1, padding=4)[0]

    return sheet(
        "One filter, the mean of 9 x 9 pixels, guided by the photograph itself",
        [
            [("the photograph", pixels(photo[0])), ("guide scale 0: an ordinary convolution", pixels(averaged(0)))],
            [("guide scale 4", pixels(averaged(4))), ("guide scale 12", pixels(averaged(12)))],
        ],
        WIDTH,
    )


def kernels(photo: Tensor) -> Image.Image:
    """Which neighbours count at three pixels."""
    kernel, _ = pac_ops.packernel2d(photo * 10, kernel_size=3, padding=1)
    return kernel_sheet("The adapting kernel K of three pixels", photo[0], kernel[0], PLACES)


def enlargement(photo: Tensor) -> Image.Image:
    """A coarse map enlarged plainly, and guided by the photograph."""
    red = photo[:, :1] - photo[:, 1:2] > 0.3  # told by its colour; a stand-in for a network's score
    coarse = F.avg_pool2d(red.float(), 16)
    blocks = F.interpolate(coarse, scale_factor=16)
    plain = F.interpolate(coarse, scale_factor=16, mode="bilinear")
    guided = pac_ops.pacresize2d(coarse, photo, scale_factor=16, scale=15.0)
    return sheet(
        "A map of 16 x 20 pixels enlarged by 16",
        [
            [("the photograph", pixels(photo[0])), ("what is red in it, averaged over 16 x 16", pixels(blocks[0]))],
            [("F.interpolate, bilinear", pixels(plain[0])), ("guided by the photograph", pixels(guided[0]))],
        ],
        WIDTH,
    )


@torch.no_grad()
def cut_out(photo: Tensor) -> Image.Image:
    """A person, cut out by what a real network says, as trained and guided."""
    small = F.interpolate(photo, (sharper.SIZE, sharper.SIZE), mode="bilinear", antialias=True)
    images, plain = 2 * small - 1, sharper.deeplab()
    guided = hotswap.convert(plain, "resize", "input", calibrate_on=[images])

    def enlarged(image: Tensor) -> Pixels:
        return pixels(F.interpolate(image[..., :170, 60:230], scale_factor=2)[0])

    def cut(network: nn.Module) -> Pixels:
        person = network(images).argmax(1, keepdim=True) == PERSON
        return enlarged(torch.where(person, small, torch.tensor(BACKGROUND).view(3, 1, 1)))

    call = 'after hotswap.convert(model, "resize", "input")'
    panels = [("a photograph", enlarged(small)), ("as trained", cut(plain)), (call, cut(guided))]
    return sheet("DeepLabV3 cuts out a person. No training, the same weights:", [panels], 340)


PICTURES: dict[str, Callable[[Tensor], Image.Image]] = {
    "one_filter": one_filter,
    "kernels": kernels,
    "enlargement": enlargement,
}

if __name__ == "__main__":
    main()
