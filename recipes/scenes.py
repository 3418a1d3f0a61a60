"""Procedural scenes: textured shapes in front of each other, with exact labels and depth.

Made for experiments that need no download. A shape's class is its texture, in colours drawn at random, so that no
colour tells a class; where two shapes meet, the picture has an edge exactly where the labels do, up to half a pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

Floats = npt.NDArray[np.float64]
Inside = npt.NDArray[np.bool_]

CLASSES = ("background", "stripes", "checks", "dots", "grain", "rings")
SHAPES = (4, 9)  # per scene: at least, and fewer than
OVERSAMPLING = 2  # the picture is drawn so many times larger, then averaged
NOISE = 0.02  # standard deviation of what a camera would add
NEAR, FAR = 1.0, 10.0  # of depths; the background lies beyond all shapes


@dataclass(frozen=True)
class Scene:
    """One picture and its ground truth, all of the same height and width."""

    image: Tensor  # [3, H, W], RGB in 0..1
    labels: Tensor  # [H, W], int64: index into CLASSES
    depth: Tensor  # [1, H, W], from NEAR to FAR


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Scenes by index, always the same for one seed. Items: image and labels, or image and depth.

    Args:
        count: how many.
        size: height and width in pixels, at least 16.
        truth: "labels" or "depth".
        seed: scenes of different seeds have nothing in common.
        keep: hold in memory what has been drawn once; drawing takes about as long as a small network's step.

    Raises:
        ValueError: where an argument is out of range.
    """

    def __init__(
        self, count: int, *, size: int = 128, truth: str = "labels", seed: int = 0, keep: bool = False
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if size < 16:
            raise ValueError(f"size must be at least 16 pixels, got {size}")
        if truth not in ("labels", "depth"):
            raise ValueError(f'truth must be "labels" or "depth", got {truth!r}')
        self.count, self.size, self.truth, self.seed = count, size, truth, seed
        self.kept: dict[int, Scene] | None = {} if keep else None

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """One scene with all its truth."""
        if not 0 <= index < self.count:
            raise IndexError(f"index must be from 0 to {self.count - 1}, got {index}")
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        drawn = draw(self.size, np.random.default_rng([self.seed, index]))
        if self.kept is not None:
            self.kept[index] = drawn
        return drawn

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = self.scene(index)
        return scene.image, scene.labels if self.truth == "labels" else scene.depth


def draw(size: int, random: np.random.Generator) -> Scene:
    """Draw one scene, from far to near."""
    fine = size * OVERSAMPLING
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine  # 0..1
    image = _coloured(_texture(0, x, y, random), random)
    labels, depth = np.zeros((fine, fine), np.int64), np.full((fine, fine), FAR)
    count = int(random.integers(*SHAPES))
    distances = np.sort(random.uniform(NEAR + 1, FAR - 1, count))[::-1]
    for distance in distances:
        inside = _shape(x, y, random)
        label = int(random.integers(1, len(CLASSES)))
        painted = _coloured(_texture(label, x, y, random), random)
        slope = random.uniform(-1, 1, 2)
        image[:, inside] = painted[:, inside]
        labels[inside] = label
        depth[inside] = (distance + slope[0] * (x - 0.5) + slope[1] * (y - 0.5))[inside]
    light = 1 + random.uniform(-0.25, 0.25) * (x - 0.5) + random.uniform(-0.25, 0.25) * (y - 0.5)
    picture = (image * light).reshape(3, size, OVERSAMPLING, size, OVERSAMPLING).mean((2, 4))
    picture += random.normal(0, NOISE, picture.shape)
    # The truth of a pixel is that of one point in it, not an average.
    at = slice(OVERSAMPLING // 2, None, OVERSAMPLING)
    return Scene(
        torch.from_numpy(picture.clip(0, 1)).float(),
        torch.from_numpy(labels[at, at].copy()),
        torch.from_numpy(depth[at, at].copy()).float()[None],
    )


# --- shapes: which points are inside ---------------------------------------------------------------------


def _shape(x: Floats, y: Floats, random: np.random.Generator) -> Inside:
    """A shape of random kind, place, size and turn, thin ones among them."""
    angle, radius = random.uniform(0, 2 * np.pi), random.uniform(0.08, 0.3)
    dx, dy = x - random.uniform(0.1, 0.9), y - random.uniform(0.1, 0.9)
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / radius
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / radius
    kinds = (_ellipse, _box, _bar, _ring, _star)
    return kinds[int(random.integers(len(kinds)))](u, v, random)


def _ellipse(u: Floats, v: Floats, random: np.random.Generator) -> Inside:
    return u**2 + (v / random.uniform(0.4, 1)) ** 2 < 1


def _box(u: Floats, v: Floats, random: np.random.Generator) -> Inside:
    return (abs(u) < 1) & (abs(v) < random.uniform(0.4, 1))


def _bar(u: Floats, v: Floats, random: np.random.Generator) -> Inside:
    return (abs(u) < 2) & (abs(v) < random.uniform(0.06, 0.2))


def _ring(u: Floats, v: Floats, random: np.random.Generator) -> Inside:
    r = np.hypot(u, v)
    return (r < 1) & (r > random.uniform(0.5, 0.85))


def _star(u: Floats, v: Floats, random: np.random.Generator) -> Inside:
    points = int(random.integers(3, 8))
    inside: Inside = np.hypot(u, v) < 0.7 + 0.3 * np.cos(points * np.arctan2(v, u))
    return inside


# --- textures: a pattern from 0 to 1 ---------------------------------------------------------------------


def _texture(label: int, x: Floats, y: Floats, random: np.random.Generator) -> Floats:
    angle, frequency = random.uniform(0, np.pi), random.uniform(10, 20)  # periods across the scene
    dx, dy = x - random.uniform(0.2, 0.8), y - random.uniform(0.2, 0.8)
    u = frequency * (np.cos(angle) * dx + np.sin(angle) * dy)
    v = frequency * (np.cos(angle) * dy - np.sin(angle) * dx)
    patterns: tuple[Callable[[], Floats], ...] = (
        lambda: _smooth(x, y, random),
        lambda: 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * u)),
        lambda: 0.5 + 0.5 * np.sign(np.sin(np.pi * u) * np.sin(np.pi * v)),
        lambda: (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(np.float64),
        lambda: _grain(x.shape[0], random),
        lambda: 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * np.hypot(u, v))),
    )
    return patterns[label]()


def _smooth(x: Floats, y: Floats, random: np.random.Generator) -> Floats:
    waves = [
        np.sin(2 * np.pi * (a * x + b * y + phase)) for a, b, phase in random.uniform((-2, -2, 0), (2, 2, 1), (4, 3))
    ]
    smooth: Floats = 0.5 + 0.125 * np.sum(waves, axis=0)
    return smooth


def _grain(size: int, random: np.random.Generator) -> Floats:
    cell = max(1, size // 64)
    cells = random.uniform(0, 1, (-(-size // cell),) * 2)
    grain: Floats = cells.repeat(cell, 0).repeat(cell, 1)[:size, :size]
    return grain


def _coloured(pattern: Floats, random: np.random.Generator) -> Floats:
    """Colour a pattern with two random colours that differ enough: [3, H, W]."""
    dark = random.uniform(0, 1, 3)
    step = random.normal(0, 1, 3)
    light = np.clip(dark + 0.5 * step / np.linalg.norm(step), 0, 1)
    blended: Floats = dark[:, None, None] + (light - dark)[:, None, None] * pattern
    return blended
