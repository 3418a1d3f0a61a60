"""Checks for joint upsampling, which takes a coarse map and a guide and returns a fine map."""

from torch import Tensor


def check_pair(low: Tensor, guide: Tensor) -> None:
    """Refuse a coarse map and a guide that do not belong together.

    Raises:
        ValueError: where one is no [B, channels, height, width], the batches differ, or the guide is the smaller one.
    """
    for name, x in (("low", low), ("guide", guide)):
        if x.dim() != 4:
            raise ValueError(f"{name} must be [B, channels, height, width], got {list(x.shape)}")
    if low.shape[0] != guide.shape[0]:
        raise ValueError(f"guide must have the batch of low, {low.shape[0]}, got {guide.shape[0]}")
    if guide.shape[2] < low.shape[2] or guide.shape[3] < low.shape[3]:
        raise ValueError(
            f"guide must be at least as large as low, {list(low.shape[2:])}, got {list(guide.shape[2:])}"
        )
