"""Guided enlargement as a layer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pac_ops.arguments import IntOrPair
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Factor
from pac_ops.functional.enlargement import pacresize2d


class PacResize2d(nn.Module):
    """`torch.nn.Upsample(mode="bilinear")` steered by a guide; see `pacresize2d`.

    `learn_scale` makes s a parameter, kept as its logarithm `log_scale`.

    Shapes: input [B, C, h, w], guide [B, G, H, W] (, coarse guide [B, G, h, w]) -> [B, C, H, W].
    """

    log_scale: nn.Parameter | None

    def __init__(
        self,
        size: IntOrPair | None = None,
        scale_factor: Factor | None = None,
        align_corners: bool = False,
        recompute_scale_factor: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
        footprint: int | Sequence[int] = 2,
        residual: bool = False,
        halvings: int = 0,
        bounded: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if learn_scale and not scale > 0:
            raise ValueError(f"scale must be > 0 where learn_scale=True: it is kept as its logarithm, got {scale!r}")
        self.size, self.scale_factor, self.align_corners = size, scale_factor, align_corners
        self.recompute_scale_factor, self.footprint, self.scale = recompute_scale_factor, footprint, scale
        self.residual, self.halvings, self.bounded = residual, halvings, bounded
        logarithm = nn.Parameter(torch.tensor(math.log(scale), device=device, dtype=dtype)) if learn_scale else None
        self.register_parameter("log_scale", logarithm)

    def forward(self, input: Tensor, guide: Tensor, coarse_guide: Tensor | None = None) -> Tensor:
        """Apply the layer; see the class."""
        logarithm = self.log_scale
        wide = None if logarithm is None else logarithm.to(accumulate_dtype(logarithm.dtype))
        scale: float | Tensor = self.scale if wide is None else wide.exp()
        options: dict[str, Any] = {name: getattr(self, name) for name in _OPTIONS}
        return pacresize2d(input, guide, coarse_guide=coarse_guide, scale=scale, **options)

    def extra_repr(self) -> str:
        """The options that are set."""
        shown = [f"{name}={getattr(self, name)}" for name in _OPTIONS if getattr(self, name) not in (None, False)]
        return ", ".join([*shown, f"scale={self.scale}" if self.log_scale is None else "learn_scale=True"])


_OPTIONS = (
    "size",
    "scale_factor",
    "align_corners",
    "recompute_scale_factor",
    "footprint",
    "residual",
    "halvings",
    "bounded",
)
