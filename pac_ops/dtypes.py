"""The dtype rule of every operator."""

import torch


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where products are summed and K is kept: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32
