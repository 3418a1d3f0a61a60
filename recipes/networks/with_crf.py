"""A segmentation network with a PAC-CRF behind it (Su et al., CVPR 2019, section 5)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pac_ops import PacCRF, PacCRFLoose

FIRST_SCALE = 30.0  # of the guide, in the unit of 0..255


class WithCRF(nn.Module):
    """A backbone whose scores are refined along the image: [B, 3, H, W] -> [B, num_classes, H, W].

    One pairwise kernel of 5 x 5 a dilation, full class-to-class weights, 5 mean-field steps. The guide of each kernel
    is the image, in the unit of 0..255, over learned scales of its own.

    Args:
        backbone: image -> logits of the image's height and width.
        num_classes: channels of the logits.
        dilations: one a pairwise kernel; (16, 64), in the order (64, 16) in published files, or (32,) for the smaller
            variant.
        std: what images in 0..1 were divided by, for each channel, with or without a mean subtracted before: only
            differences of colours count. By default images are in the unit of 0..255.
        steps: mean-field steps.
        loose: each step has weights of its own; see `PacCRFLoose`.
        kernel_size: of all pairwise kernels, as the next five; see `PacCRF.add_pairwise_kernel` and `PacCRF`.
        compat_type: see there.
        blur: see there.
        spatial_filter: see there.
        unary_weight: see there.
        fixed_weighting: see there.
        channel_scales: the guide is divided by a scale for each colour, [3] as in published files, not by one.

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
        steps: int = 5,
        loose: bool = False,
        kernel_size: int = 5,
        compat_type: str = "4d",
        blur: int = 1,
        spatial_filter: bool = True,
        unary_weight: float = 1.0,
        fixed_weighting: bool = False,
        channel_scales: bool = False,
    ) -> None:
        super().__init__()
        if not dilations:
            raise ValueError("dilations must hold one number a pairwise kernel, such as (16, 64), got none")
        if len(std) != 3 or min(std) <= 0:
            raise ValueError(f"std must be three positive numbers, got {list(std)}")
        kernel = {
            "kernel_size": kernel_size,
            "blur": blur,
            "compat_type": compat_type,
            "spatial_filter": spatial_filter,
        }
        self.backbone = backbone
        self.crf = (PacCRFLoose if loose else PacCRF)(
            num_classes,
            steps,
            perturbed_init=True,
            fixed_weighting=fixed_weighting,
            unary_weight=unary_weight,
            pairwise_kernels=[kernel | {"dilation": dilation} for dilation in dilations],
        )
        shape = (3,) if channel_scales else ()
        self.feat_scales = nn.ParameterList(nn.Parameter(torch.full(shape, FIRST_SCALE)) for _ in dilations)
        unit = 255 * torch.tensor(std)[:, None, None]
        self.register_buffer("unit", unit, persistent=False)  # published weights have no such name

    def forward(self, x: Tensor) -> Tensor:
        """Refined scores of the pixels of x; see the class."""
        pixels = x * self.unit
        refined: Tensor = self.crf(self.backbone(x), [pixels / scale.view(-1, 1, 1) for scale in self.feat_scales])
        return refined
