"""The dtype rules of every operator."""

import torch


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where products are summed and K is kept: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast narrows a convolution's arguments to on this kind of device now, None where it is off."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):  # meta has no autocast to ask about
        return None
    return torch.get_autocast_dtype(device_type)
