"""Tensors of subclasses, whose methods may be their own, with other arguments than PyTorch's."""

from torch import Tensor


def as_plain(x: Tensor) -> Tensor:
    """The same values, and the same place in what autograd records, as a tensor of no such subclass.

    A subclass that the dispatcher calls, such as a fake tensor, stays: what it holds is its own affair.
    """
    if type(x) is Tensor or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return x
    return x.as_subclass(Tensor)
