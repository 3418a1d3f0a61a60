"""Tensors of subclasses, as other libraries have them."""

import pytest
import torch
from torch import Tensor


class Tagged(Tensor):
    """A tensor that keeps a tag, as MONAI's MetaTensor keeps its metadata, and whose methods are its own."""

    tag = None

    def new_empty(self, size, dtype=None, device=None):
        return self._made(torch.empty, size, dtype, device)

    def new_zeros(self, size, dtype=None, device=None):
        return self._made(torch.zeros, size, dtype, device)

    def new_ones(self, size, dtype=None, device=None):
        return self._made(torch.ones, size, dtype, device)

    def _made(self, make, size, dtype, device):
        return make(size, dtype=dtype or self.dtype, device=device or self.device).as_subclass(Tagged)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        tags = (x.tag for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tagged))
        if isinstance(out, Tagged) and out.tag is None:
            out.tag = next((tag for tag in tags if tag is not None), None)
        return out


class Named(Tensor):
    """A subclass with nothing of its own."""


class Forgetful(Tensor):
    """Whose operations give plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class Unwrapping(Tensor):
    """Whose operations give plain tensors by its own `__torch_function__`, as torchvision's do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _tagged(x):
    out = x.as_subclass(Tagged)
    out.tag = "kept"
    return out


def _of_monai(x):
    return pytest.importorskip("monai.data", reason="MONAI is not installed").MetaTensor(x, meta={"kept": 1})


def _of_torchvision(x):
    return pytest.importorskip("torchvision.tv_tensors", reason="torchvision is not installed").Image(x)


KINDS = {
    "tagged": _tagged,
    "named": lambda x: x.as_subclass(Named),
    "forgetful": lambda x: x.as_subclass(Forgetful),
    "unwrapping": lambda x: x.as_subclass(Unwrapping),
    "parameter": torch.nn.Parameter,
    "MONAI's": _of_monai,
    "torchvision's": _of_torchvision,
}


def assert_same(actual, plain_layers, expected):
    """Of the class, with the tag, that the plain layer gives; of the values expected."""
    assert type(actual) is type(plain_layers)
    assert getattr(actual, "tag", None) == getattr(plain_layers, "tag", None)
    assert getattr(actual, "meta", {}).get("kept") == getattr(plain_layers, "meta", {}).get("kept")
    torch.testing.assert_close(actual.as_subclass(Tensor), expected.as_subclass(Tensor))
