"""A network that sees its image at half the size: what a guided enlargement gains from the whole image's pixels."""

import torch.nn.functional as F
from torch import Tensor, nn

from examples import hed


class HalfResolution(nn.Module):
    """A segmentation network run at half the image's size: image [B, 3, H, W] -> logits [B, classes, H, W]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(2)  # its output is the image as the network sees it: a guide of low resolution
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Segment; see the class."""
        small: Tensor = self.network(self.shrink(image))
        return F.interpolate(small, size=image.shape[2:], mode="bilinear", align_corners=False)


def load_segmenter(classes: int) -> HalfResolution:
    """The network of `examples.hed.load_segmenter` at half resolution."""
    return HalfResolution(hed.load_segmenter(classes))
