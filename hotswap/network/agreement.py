"""The distance between two outputs of networks: tensors, numbers and text in containers of any kind."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hotswap.network.nested import parts

_SMALL = 1e-3  # of the largest value in all outputs: an output below it is compared with that
_DEEPEST = 20  # levels of containers in containers


class Distance(NamedTuple):
    """The distance between two outputs."""

    size: float  # the largest difference, relative to the largest value; infinite where they do not match at all
    text: str  # where it is, for people


def values(output: Any) -> dict[str, Any]:
    """Copies of the tensors, numbers and text in an output, and the type of each container, by their places.

    Containers are sequences, mappings, dataclasses and other objects with attributes.
    """
    return dict(_values(output, "", 0))


def distance(before: Mapping[str, Any], after: Mapping[str, Any]) -> Distance:
    """The distance between two outputs, given as `values`; for integers, the share that differs."""
    if different := sorted(before.keys() ^ after.keys()):
        return Distance(inf, f"only one of the two gives {_named(different[0])}")
    largest = max((_largest(x) for x in before.values()), default=0.0)
    worst = Distance(0.0, "no difference")
    for where, old in before.items():
        gap = _between(_named(where), old, after[where], largest * _SMALL)
        worst = gap if gap.size > worst.size else worst
    return worst


def why_nothing(before: Mapping[str, Any]) -> str | None:
    """Why an output cannot be compared with any, if it cannot."""
    compared = [x for x in before.values() if isinstance(x, Tensor) and x.numel()]
    if not compared:
        return "no tensor was found in its outputs"
    numbers = [x for x in compared if x.is_floating_point() or x.is_complex()]
    if numbers and not any(x.isfinite().any() for x in numbers):
        return "its outputs are not finite"
    return None


def _values(x: Any, where: str, level: int) -> Iterator[tuple[str, Any]]:
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biufc":
        x = torch.as_tensor(x)
    if isinstance(x, Tensor):
        yield where, _as_strided(x)
        return
    if x is None or isinstance(x, bool | str | bytes):
        yield where, x
        return
    if isinstance(x, int | float | complex):
        yield where, torch.as_tensor(x)
        return
    if level == _DEEPEST:
        return
    yield f"the type of output{where}", type(x).__qualname__
    items = parts(list(x) if isinstance(x, set | frozenset) else x)
    if items is None and not isinstance(x, type) and not callable(x):
        items = [(f".{name}", item) for name, item in getattr(x, "__dict__", {}).items()]
    for further, item in items or ():
        yield from _values(item, where + further, level + 1)


def _as_strided(x: Tensor) -> Tensor:
    x = x.detach().as_subclass(Tensor)
    if x.is_quantized:
        x = x.dequantize()
    return x.to_dense() if x.layout is not torch.strided else x.clone()


def _named(where: str) -> str:
    return where if where.startswith("the ") else f"output{where}"


def _largest(x: Any) -> float:
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return 0.0
    finite = _real(x)
    finite = finite[finite.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _real(x: Tensor) -> Tensor:
    return (torch.view_as_real(x) if x.is_complex() else x).double()


def _between(name: str, old: Any, new: Any, small: float) -> Distance:
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        same = not isinstance(old, Tensor) and not isinstance(new, Tensor) and old == new
        return Distance(0.0 if same else inf, f"{name} is {_short(old)} before and {_short(new)} after")
    if old.shape != new.shape:
        return Distance(inf, f"{name} is of shape {list(old.shape)} before and {list(new.shape)} after")
    if old.dtype is not new.dtype:
        return Distance(inf, f"{name} is of {old.dtype} before and {new.dtype} after")
    if old.numel() == 0:
        return Distance(0.0, "")
    if not (old.is_floating_point() or old.is_complex()):
        share = (old != new.to(old.device)).double().mean().item()
        return Distance(share, f"{share:.3g} of the values of {name} differ")
    x, y = _real(old), _real(new.to(old.device))
    finite = x.isfinite()
    if not torch.equal(x[~finite].nan_to_num(0.5, 1, -1), y[~finite].nan_to_num(0.5, 1, -1)):
        return Distance(inf, f"{name} is not finite in different places before and after")
    x, y = x[finite], y[finite]
    if x.numel() == 0:
        return Distance(0.0, "")
    off, size = (y - x).abs().max().item(), x.abs().max().item()
    if off != off:  # only the new one is not finite there
        return Distance(inf, f"{name} is finite before and not after")
    return Distance(off / (max(size, small) or 1.0), f"{name} is off by {off:.3g} of {size:.3g}")


def _short(x: Any) -> str:
    return f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else repr(x)[:60]
