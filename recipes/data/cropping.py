"""Random crops, flips and padding of an image together with its target."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from hotswap.errors import HotswapError
from hotswap.zoo.providers import IMAGENET_MEAN

IGNORED = 255  # the label of pixels that do not count


class Cropping:
    """Cut the same random window out of image and target, and mirror both or neither.

    An image smaller than the window is padded first: with the mean colour, its labels with `IGNORED`.

    Args:
        size: height and width of the window.
        flip: whether half of the crops are mirrored left to right. Not for targets with a direction.

    Raises:
        HotswapError: where the size is below 1.
    """

    def __init__(self, size: int, *, flip: bool) -> None:
        if size < 1:
            raise HotswapError(f"crop must be at least 1 pixel, got {size}")
        fill = {tv_tensors.Image: list(IMAGENET_MEAN), tv_tensors.Mask: IGNORED}
        steps: list[torch.nn.Module] = [v2.RandomHorizontalFlip()] if flip else []
        self.transform = v2.Compose([*steps, v2.RandomCrop(size, pad_if_needed=True, fill=fill)])

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """[3, H, W] and [..., H, W] -> the same of height and width `size`."""
        image, target = self.transform(tv_tensors.Image(image), tv_tensors.Mask(target))
        return image.as_subclass(Tensor).contiguous(), target.as_subclass(Tensor).contiguous()


def padded(image: Tensor, labels: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Pad [3, H, W] and [H, W] at the right and below to multiples, with the mean colour and `IGNORED`."""
    rows, columns = (-size % multiple for size in labels.shape)
    canvas = torch.tensor(IMAGENET_MEAN)[:, None, None].repeat(1, image.shape[1] + rows, image.shape[2] + columns)
    canvas[:, : image.shape[1], : image.shape[2]] = image
    return canvas, F.pad(labels, (0, columns, 0, rows), value=IGNORED)
