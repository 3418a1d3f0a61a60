"""What follows from the shapes and options of a call: worked out once, and kept for the next call alike."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter

KEPT = 4096  # sizes that vary from call to call must not fill the memory
_settled: dict[tuple[Any, ...], Any] = {}
T = TypeVar("T")


def settled(check: Callable[..., T], tensors: Sequence[Tensor | None], *options: Any) -> T:
    """What `check` returns of tensors and options, or the error that it raises.

    Of tensors it may look at shape, dtype, device and whether autocast is on. A convolution's checks take as long as
    all else before its kernel is launched.
    """
    if is_compiling() or torch._C._get_tracing_state() is not None:
        return check(*tensors, *options)
    kinds = tuple(map(type, options))  # as 1.0 is equal to 1
    key: list[Any] = [check, options, kinds]
    if tuple in kinds:
        key += [tuple(map(type, x)) for x in options if type(x) is tuple]
    for x in tensors:
        if x is None:
            key.append(None)
        elif type(x) is Tensor or type(x) is Parameter:
            key += (x.shape, x.dtype, x.device)
        else:
            return check(*tensors, *options)
    if torch._C._is_any_autocast_enabled():
        key += [x is not None and torch.is_autocast_enabled(x.device.type) for x in tensors]
    whole = tuple(key)
    try:
        found: T | None = _settled.get(whole)
    except TypeError:  # of symbolic sizes, which have no hash
        return check(*tensors, *options)
    if found is None:
        found = check(*tensors, *options)
        if len(_settled) >= KEPT:
            _settled.clear()
        _settled[whole] = found
    return found
