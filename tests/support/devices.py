"""Devices that need not be there."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def cuda_can_be_faked():
    """Not by every build of torch 2.8 for CUDA where there is no driver."""
    try:
        with FakeTensorMode():
            torch.zeros(2, 3, device="cuda")[:, :1].contiguous()
    except RuntimeError:
        return False
    return True


needs_fake_cuda = pytest.mark.skipif(not cuda_can_be_faked(), reason="no fake tensors of cuda here")
