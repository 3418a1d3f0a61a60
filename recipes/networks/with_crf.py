"""A segmentation network with a PAC-CRF behind it (Su et al., CVPR 2019, section 5)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pac_ops import PacCRF

FIRST_SCALE = 30.0  # of the guide, in the unit of 0..255
MEAN_FIELD_STEPS = 5
WINDOW = 5


class WithCRF(nn.Module):
    """A backbone whose scores are refined along the image: [B, 3, H, W] -> [B, num_classes, H, W].

    One pairwise kernel of 5 x 5 a dilation, full class-to-class weights, 5 mean-field steps. The guide of each kernel
    is the image, in the unit of 0..255, over a learned scale of its own.

    Args:
        backbone: image -> logits of the image's height and width.
        num_classes: channels of the logits.
        dilations: one a pairwise kernel; (16, 64) as published, or (32,) for the smaller variant.
        std: what images in 0..1 were divided by, for each channel, with or without a mean subtracted before: only
            differences of colours count. By default images are in the unit of 0..255.

    Raises:
        ValueError: where there is no dilation, or an argument is out of range.
    """

    unit: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 21,
        dilations: Sequence[int] = (16, 64),
        std: Sequence[float] = (1 / 255, 1 / 255, 1 / 255),
    ) -> None:
        super().__init__()
        if not dilations:
            raise ValueError("dilations must hold one number a pairwise kernel, such as (16, 64), got none")
        if len(std) != 3 or min(std) <= 0:
            raise ValueError(f"std must be three positive numbers, got {list(std)}")
        kernels = [{"kernel_size": WINDOW, "dilation": dilation} for dilation in dilations]
        self.backbone = backbone
        self.crf = PacCRF(num_classes, MEAN_FIELD_STEPS, perturbed_init=True, pairwise_kernels=kernels)
        self.feat_scales = nn.ParameterList(nn.Parameter(torch.tensor(FIRST_SCALE)) for _ in dilations)
        unit = 255 * torch.tensor(std)[:, None, None]
        self.register_buffer("unit", unit, persistent=False)  # published weights have no such name

    def forward(self, x: Tensor) -> Tensor:
        """Refined scores of the pixels of x; see the class."""
        pixels = x * self.unit
        refined: Tensor = self.crf(self.backbone(x), [pixels / scale for scale in self.feat_scales])
        return refined
