"""What plans are made from: tensors without their values, and PyTorch's switches."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pac_ops import formats

_SWITCH = getattr(torch.backends.cudnn, "conv", None)  # None before PyTorch 2.9


class Layout(NamedTuple):
    """Size, strides and dtype of a tensor; sizes may be symbols in a trace."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def dense(cls, shape: Any, dtype: torch.dtype, *, last: bool = False) -> "Layout":
        """That of a new tensor, contiguous or channels-last."""
        return cls(tuple(shape), formats.strides(shape, last=last), dtype)

    @property
    def last(self) -> bool:
        """Whether channels lie side by side."""
        return self.strides[1] == 1 and self.strides[3] > 1

    def empty(self, device: torch.device) -> Tensor:
        """A tensor of this layout."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device)


class Settings(NamedTuple):
    """What a plan depends on beside its tensors."""

    device: torch.device
    deterministic: bool
    precision: str  # how float32 factors are multiplied


Key = tuple[Any, ...]  # a Layout or Settings, as a plain tuple, which is made in a fifth of the time


def layout(x: Tensor) -> Key:
    """The key of a tensor's `Layout`."""
    return x.shape, x.stride(), x.dtype


def settings(x: Tensor) -> Key:
    """The key of the `Settings` of calls on tensors like `x`."""
    narrow = x.dtype is not torch.float32
    return x.device, torch.are_deterministic_algorithms_enabled(), "ieee" if narrow else precision()


def precision() -> str:
    """How float32 factors are multiplied: as PyTorch's own convolutions may on a GPU, by default in TF32."""
    if _SWITCH is None:
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    return "tf32" if _SWITCH.fp32_precision == "tf32" else "ieee"
