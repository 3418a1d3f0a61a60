"""Tensors of subclasses, whose methods may take other arguments than PyTorch's."""

from torch import Tensor


def as_plain(x: Tensor) -> Tensor:
    """The same values, and the same place in what autograd records, as a tensor of no such subclass.

    A subclass with a `__torch_dispatch__`, such as a fake tensor, is returned as it is.
    """
    if type(x) is Tensor or type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return x
    return x.as_subclass(Tensor)
