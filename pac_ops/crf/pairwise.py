"""A pairwise term of a PacCRF: its options, and the weights it starts from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pac_ops.arguments import IntOrPair, make_window
from pac_ops.geometry import Pair

COMPAT_TYPES = ("4d", "2d", "potts", "na")


@dataclass(frozen=True)
class PairwiseKernel:
    """One pairwise term of a `PacCRF`; see `PacCRF.add_pairwise_kernel`."""

    kernel_size: IntOrPair = 3
    dilation: IntOrPair = 1
    blur: int = 1
    compat_type: str = "4d"
    spatial_filter: bool = True
    pairwise_weight: float = 1.0
    symmetric_normalization: bool = False

    def __post_init__(self) -> None:
        make_window(self.kernel_size, 1, "same", self.dilation)
        if self.compat_type not in COMPAT_TYPES:
            raise ValueError(f"compat_type must be one of {', '.join(COMPAT_TYPES)}, got {self.compat_type!r}")
        if not isinstance(self.blur, int) or self.blur < 1:
            raise ValueError(f"blur must be a positive integer, got {self.blur!r}")
        if not self.shared and self.symmetric_normalization:
            raise ValueError(
                f'symmetric_normalization needs compat_type "2d" or "potts", one filter for all classes, '
                f"got {self.compat_type!r}"
            )

    @property
    def shared(self) -> bool:
        """Whether one filter serves all classes."""
        return self.compat_type in ("2d", "potts")

    @property
    def starting_number(self) -> float:
        """Where w starts, as it is kept.

        Potts: 1 - I adds the same to all classes and takes a class's own message away: only a sign is left of it.
        """
        return -self.pairwise_weight if self.compat_type == "potts" else self.pairwise_weight

    @property
    def learned(self) -> bool:
        """Whether the filter is learned: the weights from class to class are, whatever `spatial_filter` says."""
        return self.spatial_filter or not self.shared


def starting_weight(channels: int, kernel_size: Pair, spec: PairwiseKernel) -> Tensor:
    """A truncated Gaussian of sigma k/4 that sums to kh * kw, or ones; then a zero centre: no message to oneself."""
    kh, kw = kernel_size
    if spec.learned:
        rows, columns = (torch.exp(-0.5 * ((torch.arange(k) - k // 2) / (k / 4)) ** 2) for k in kernel_size)
        plane = torch.outer(rows, columns)
        plane *= kh * kw / plane.sum()
    else:
        plane = torch.ones(kh, kw)
    plane[kh // 2, kw // 2] = 0
    if spec.shared:
        return plane[None, None]
    return (1 - torch.eye(channels))[:, :, None, None] * plane
