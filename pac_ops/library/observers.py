"""What may watch a call: gradients, transforms, tracers, modes, the profiler."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import (
    _dispatch_keys,
    _dispatch_tls_is_dispatch_key_excluded,
    _dispatch_tls_local_include_set,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling


def untraced(*arguments: Any) -> bool:
    """Whether these tensors are plain ones, whose values are known, and no tracer or transform is on."""
    if is_compiling() or torch._C._get_tracing_state() is not None or transforms_active():
        return False
    return all(type(x) in _PLAIN_TYPES and not x.is_meta for x in arguments if isinstance(x, Tensor))


def may_split(*arguments: Any) -> bool:
    """Whether work on these tensors may be done in parts, by the backend itself: nothing is recorded or traced.

    A result computed in parts is right for these sizes only, and a trace must hold for others.
    """
    return untraced(*arguments) and not (is_grad_enabled() and torch._C._any_requires_grad(*arguments))


def transforms_active() -> bool:
    """Whether the call is under a transform, or in forward mode (which is off inside an autograd function)."""
    in_forward_mode = forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
    return in_forward_mode or torch._C._are_functorch_transforms_active()


def unwatched(arguments: Sequence[Any]) -> bool:
    """Whether the dispatcher would do no more than call the kernel: plain tensors of a CPU or a GPU, and no observer.

    It asks for private dispatch keys because nothing else answers for all modes and transforms at once. Going through
    the dispatcher instead takes 5 us more a call: of 4 channels at 32 x 32, a sixth of a convolution. Where gradients
    are recorded as well, by an autograd function of Python's, it takes 40 us more.
    """
    if _dispatch_tls_local_include_set().raw_repr() not in _OF_PLAIN_THREADS:
        return False
    if forward_ad._current_level >= 0 or _len_torch_function_stack() or _profiler_enabled():
        return False
    for x in arguments:
        if type(x) in _PLAIN_TYPES:
            if _dispatch_keys(x).raw_repr() not in _OF_PLAIN_TENSORS:
                return False
        elif isinstance(x, Tensor):
            return False
    return True


def below_autograd() -> bool:
    """Whether the call comes from an operator's kernel, whose gradient is that operator's affair."""
    return _dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)


def _keys(*names: str) -> int:
    """A set of dispatch keys, as the number that two of them are compared by."""
    keys = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names)
    return reduce(or_, keys).raw_repr()


_AUTOGRAD = torch._C.DispatchKey.AutogradOther
# Outside `torch.inference_mode`, and inside.
_OF_PLAIN_THREADS = {_keys("BackendSelect", "ADInplaceOrView"), _keys("BackendSelect")}
_OF_PLAIN_TENSORS = {
    _keys(device, f"Autocast{device}", *recorded)
    for device in ("CPU", "CUDA")
    for recorded in (("ADInplaceOrView", f"Autograd{device}"), ())
}
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
