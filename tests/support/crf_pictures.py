"""A picture for a conditional random field to refine."""

import torch


def picture(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, *size, generator=generator, dtype=torch.float64) * 255
