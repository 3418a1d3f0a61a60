"""Strokes of text set over photographs, with exact masks: photographs of scikit-image, fonts of matplotlib."""

import functools
import io
import string
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor
from torch.utils.data import Dataset

from recipes.dependencies import installed_file

Split = Literal["train", "validation", "test"]

# The splits share neither a photograph nor a family of fonts.
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "rocket"),
    "validation": ("retina", "immunohistochemistry"),
    "test": ("chelsea", "hubble_deep_field"),
}
FONTS = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
        *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    ),
    "validation": ("cmr10", "cmss10", "cmtt10", "cmb10"),
    "test": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
# In a picture, pixels of a line, in a line: at least, and fewer than.
LINES, HEIGHTS, LETTERS = (2, 5), (12, 28), (4, 10)
DRAWN = 4  # lines are drawn so many times larger, so that the mask is what covers half of a pixel


class Strokes(Dataset[tuple[Tensor, Tensor]]):
    """Pictures by index, always the same.

    Items: image [3, size, size], RGB in 0..1, and labels [size, size], int64, 1 on a stroke and 0 elsewhere.
    Lines are turned, half transparent, blurred and noisy, and the picture has been a JPEG.

    Args:
        split: "train", "validation" or "test".
        count: how many.
        size: height and width in pixels, at most 300.

    Raises:
        FileNotFoundError: where matplotlib is not installed.
    """

    def __init__(self, split: Split, count: int, size: int = 96) -> None:
        self.split, self.count, self.size = split, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _drawn(self.split, index, self.size)


@functools.cache
def _drawn(split: Split, index: int, size: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng([list(PHOTOGRAPHS).index(split), index])
    picture = _crop(_photograph(PHOTOGRAPHS[split][random.integers(len(PHOTOGRAPHS[split]))]), size, random)
    covered = np.zeros((size, size))
    for _ in range(random.integers(*LINES)):
        line = _line(split, size, random)
        seen = line * random.uniform(0.6, 1)
        picture = picture * (1 - seen[..., None]) + _colour_against(picture[line > 0.5], random) * seen[..., None]
        covered = np.maximum(covered, line)
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.7)))
    noisy = np.asarray(image) + random.normal(0, random.uniform(0, 8), (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=int(random.integers(50, 95)))
    pixels = np.asarray(Image.open(file))
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255, torch.tensor(covered > 0.5).long()


def _crop(photograph: npt.NDArray[np.uint8], size: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    row, column = (random.integers(side - size + 1) for side in photograph.shape[:2])
    return photograph[row : row + size, column : column + size, :3] / 255


def _line(split: Split, size: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """How much of each pixel a line of letters covers."""
    name = FONTS[split][random.integers(len(FONTS[split]))]
    font = _font(name, int(random.integers(*HEIGHTS)))
    letters = "".join(random.choice(list(string.ascii_letters + string.digits), random.integers(*LETTERS)))
    sheet = Image.new("L", (size * DRAWN, size * DRAWN))
    place = tuple(random.uniform(0.1, 0.9, 2) * size * DRAWN)
    ImageDraw.Draw(sheet).text(place, letters, 255, font, anchor="mm")
    sheet = sheet.rotate(random.uniform(-30, 30), Image.Resampling.BILINEAR, center=place)
    return np.asarray(sheet.resize((size, size), Image.Resampling.BOX)) / 255


def _colour_against(pixels: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """A colour lighter or darker than what it lies on, by a quarter of the range or more where there is room."""
    behind = pixels.mean() if pixels.size else 0.5
    lighter = behind < 0.5 if min(behind, 1 - behind) < 0.3 else random.random() < 0.5
    shade = random.uniform(min(behind + 0.25, 1), 1) if lighter else random.uniform(0, max(behind - 0.25, 0))
    return (shade + random.uniform(-0.15, 0.15, 3)).clip(0, 1)


@functools.cache
def _font(name: str, height: int) -> ImageFont.FreeTypeFont:
    file = installed_file("matplotlib", f"matplotlib/mpl-data/fonts/ttf/{name}.ttf", install="pip install matplotlib")
    return ImageFont.truetype(file, height * DRAWN)


@functools.cache
def _photograph(name: str) -> npt.NDArray[np.uint8]:
    import skimage.data

    pixels: npt.NDArray[np.uint8] = getattr(skimage.data, name)()
    return pixels
