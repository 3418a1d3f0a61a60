"""A small network for recipes that run anywhere."""

import torch.nn.functional as F
from torch import Tensor, nn


class SmallSegmenter(nn.Module):
    """Class logits of every pixel, [B, 3, H, W] -> [B, classes, H, W], computed at a quarter of the size.

    Like most segmentation networks it decides on a coarse map and enlarges that, so edges are where it errs.

    Args:
        classes: channels of the output.
        width: channels of the first stage; each of the two others has twice those of the one before.
    """

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.stage1 = _stage(3, width, stride=1)
        self.stage2 = _stage(width, 2 * width, stride=2)
        self.stage3 = nn.Sequential(_stage(2 * width, 4 * width, stride=2), _stage(4 * width, 4 * width, stride=1))
        self.head = nn.Conv2d(4 * width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the pixels of an image; see the class."""
        coarse = self.head(self.stage3(self.stage2(self.stage1(image))))
        return F.interpolate(coarse, size=image.shape[-2:], mode="bilinear", align_corners=False)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two convolutions, the first of which may halve the size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
