"""Memory that is allocated and not written holds NaN, so that what a kernel leaves out is seen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@contextmanager
def poisoned() -> Iterator[None]:
    """In this block every floating tensor that PyTorch's Python allocates empty is filled with NaN."""
    with (
        mock.patch.object(torch, "empty", _filled(torch.empty)),
        mock.patch.object(torch, "empty_strided", _filled(torch.empty_strided)),
        mock.patch.object(torch.Tensor, "new_empty", _filled(torch.Tensor.new_empty)),
    ):
        yield


def _filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        x = allocate(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x  # not what Triton clears the cache with

    return filled
