"""Limits for architectures that are named in a file: nobody typed their names, so they are not trusted.

They may be networks of the providers, with plain options, and take no more memory than the file's weights do.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registration

from hotswap.errors import HotswapError
from hotswap.zoo import transformers
from hotswap.zoo.names import IN_FILES, TRANSFORMERS, Spec

# Options that a file may not use: they read files, fetch something, or compile. Rather too many than too few.
_REFUSED_IN_FILES = re.compile(r"weights|pretrained|checkpoint|cache|file|url|hub|script|jit")
_STRING_IN_FILES = re.compile(r"[\w.\-]{0,64}")  # no path and no address
_TENSORS = 1000  # temporary tensors that a network may create


@dataclass(frozen=True)
class SizeLimit:
    """Byte and tensor limit for an untrusted architecture."""

    bytes: int  # of parameters and buffers
    tensors: int  # number of parameters and buffers; some more may be created on the way


def check_untrusted(spec: Spec) -> None:
    """Refuse what a file may not ask for."""
    if spec.is_factory:
        raise HotswapError(
            f"the architecture {str(spec)!r} is code of somebody's own, and a file may not choose what code runs; "
            "build the network yourself and pass it as model (on the command line: --model)"
        )
    permitted = IN_FILES[spec.provider]
    if permitted is None or not permitted.fullmatch(spec.name) or (spec.provider == TRANSFORMERS and spec.options):
        raise HotswapError(f"a file may not ask for the network {str(spec)!r}; pass the network as model (--model)")
    for key, value in spec.options.items():
        if _REFUSED_IN_FILES.search(key) or not all(_is_harmless(key, x) for x in _flat(value)):
            raise HotswapError(
                f"a file may not ask for option {key}={value!r} of {spec.provider}:{spec.name}; "
                "build the network yourself and pass it as model (on the command line: --model)"
            )


def _is_harmless(key: str, value: Any) -> bool:
    if isinstance(value, str):
        return bool(_STRING_IN_FILES.fullmatch(value))
    return value is None or abs(value) <= transformers.largest(key)


def _flat(value: Any) -> list[Any]:
    return [x for item in value for x in _flat(item)] if isinstance(value, list) else [value]


@contextmanager
def limited(spec: Spec, limit: SizeLimit | None) -> Iterator[None]:
    """While a network that a file named is built: no access to the hub, and no more tensors than `limit`.

    A tensor is counted when a module takes it, which is before anything is written to its memory.
    """
    constants: Any = sys.modules.get("huggingface_hub.constants")
    taken = tensors = 0

    def count(_module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal taken, tensors
        taken += 0 if tensor is None else tensor.numel() * tensor.element_size()
        tensors += tensor is not None
        if limit is not None and (taken > limit.bytes or tensors > 4 * limit.tensors + _TENSORS):
            raise HotswapError(f"the network {spec} is larger than the file that names it could hold")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    before = None if constants is None else constants.HF_HUB_OFFLINE
    try:
        if constants is not None:
            constants.HF_HUB_OFFLINE = True
        yield
    finally:
        if constants is not None:
            constants.HF_HUB_OFFLINE = before
        for hook in hooks:
            hook.remove()
