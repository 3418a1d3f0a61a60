"""Pictures of coloured shapes with their labels, and networks that are right on a coarse grid."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

COLOURS = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.3, 0.2], [0.3, 0.8, 0.9], [0.9, 0.9, 0.2]])


def picture(seed, size=(64, 96), classes=4):
    """An image [3, H, W] in 0..1 of discs on a ground, each class of its colour but for noise; and labels [H, W]."""
    chance = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.int64)
    for _ in range(6):
        at, radius = chance.uniform((0, 0), size), chance.uniform(6, 16)
        labels[(rows - at[0]) ** 2 + (columns - at[1]) ** 2 < radius**2] = chance.integers(1, classes)
    labels = torch.from_numpy(labels)
    noise = torch.from_numpy(chance.normal(0, 0.04, (3, *size))).float()
    return (COLOURS[labels].permute(2, 0, 1) + noise).clamp(0, 1), labels


class Coarse(nn.Module):
    """Scores of classes by colour, on cells of 8 x 8 pixels, enlarged bilinearly."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 8, 8)
        colours = COLOURS[:classes]
        with torch.no_grad():
            self.conv.weight.copy_((40 * colours / 64)[:, :, None, None].expand(-1, -1, 8, 8))
            self.conv.bias.copy_(-20 * colours.square().sum(1))

    def forward(self, image):
        return F.interpolate(self.conv(image), image.shape[-2:], mode="bilinear")


class Blind(nn.Module):
    """The same, of a network whose labels have nothing to do with what it is guided by: its scores are a ramp."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, 8)
        nn.init.zeros_(self.conv.weight)

    def forward(self, image):
        scores = self.conv(image)
        scores = scores + torch.stack(
            [scores[:, 0] * 0, torch.linspace(-1, 1, scores.shape[3]).expand_as(scores[:, 0])], 1
        )
        return F.interpolate(scores, image.shape[-2:], mode="bilinear")


class Fixed(Coarse):
    """The same for images of 40 x 40 alone."""

    def forward(self, image):
        return super().forward(image.reshape(-1, 3, 40, 40))


def save(folder, count=20, classes=4, **options):
    """Write pictures and their labels, as `photos/N.png` and `labels/N.png` of a folder."""
    photos, labels = Path(folder, "photos"), Path(folder, "labels")
    photos.mkdir()
    labels.mkdir()
    for seed in range(count):
        image, truth = picture(seed, classes=classes, **options)
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(photos / f"{seed:02}.png")
        Image.fromarray(truth.byte().numpy()).save(labels / f"{seed:02}.png")
