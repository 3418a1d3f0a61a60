"""Which backend runs a call: pure predicates tried in a fixed order, at the call, never at import.

Automatic choice takes the first backend that can run; on a GPU where that is not `triton`, a warning says why, once.
A backend asked for by name, through `PAC_OPS_BACKEND` or `use_backend`, runs or raises with its reason.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

ENVIRONMENT_VARIABLE = "PAC_OPS_BACKEND"
_MODULES = {"triton": "triton", "native": "native", "cpu": "blocked", "reference": "reference"}
BACKENDS = tuple(_MODULES)  # in the order they are tried
_CPU_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NATIVE = {  # its modules
    torch.float32: "native",
    torch.float64: "native.double",
    torch.float16: "native.half",
    torch.bfloat16: "native.half",
}
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TRITON_CAPABILITY = (8, 0)

# What `os.environ` looks things up in. Its own `get` raises and catches two errors where nothing is set, which makes
# pooling and enlargement of a 32 x 32 map 5 to 6 % slower.
_environment: Any = os.environ._data  # type: ignore[attr-defined]
_variable = os.environ.encodekey(ENVIRONMENT_VARIABLE)

_forced: ContextVar[str | None] = ContextVar("pac_ops_backend", default=None)
CHOSEN: dict[tuple[torch.device, torch.dtype], Any] = {}  # where none is asked for


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator in this block on one backend: "triton", "native", "cpu" or "reference".

    Raises:
        ValueError: for an unknown name, here; where that backend cannot run a call, at the call.
    """
    token = _forced.set(_check_name(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def why_not(name: str, x: Tensor) -> str | None:
    """None if backend `name`, asked for, can run on tensors like `x`, else why it cannot."""
    if name == "triton":
        return _why_not_triton(x)
    if name in ("native", "cpu"):
        dtypes = _CPU_DTYPES if name == "cpu" else _NATIVE
        if x.device.type != "cpu":
            return f"it runs on cpu tensors, and these are on {x.device}"
        if x.dtype not in dtypes:
            return f"it has no {x.dtype}"
    return load("native").why_not_built(x.dtype) if name == "native" else None


def _why_not_triton(x: Tensor) -> str | None:
    interpreter = x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if x.device.type != "cuda" and not interpreter:
        return f"it runs on cuda tensors, and these are on {x.device}"
    if x.dtype not in _TRITON_DTYPES:
        return f"it has no {x.dtype}"
    if reason := _why_no_triton():
        return reason
    if interpreter and not load("triton").INTERPRETED:
        return "TRITON_INTERPRET=1 was set after its kernels were imported"
    if x.device.type == "cuda" and torch.cuda.is_available():  # a fake tensor needs no GPU
        capability = torch.cuda.get_device_capability(x.device)
        if capability < _TRITON_CAPABILITY:
            return f"Triton supports GPUs of compute capability 8.0 and above, and this one's is {capability}"
    return None


@cache
def _why_no_triton() -> str | None:
    try:
        load("triton")
    except ImportError as error:
        return f"Triton cannot be imported: {str(error).splitlines()[0]}"
    return None


def _why_not_unasked(name: str, x: Tensor) -> str | None:
    """`why_not`, where no backend was asked for: Triton's interpreter is for tests."""
    if name == "triton" and x.device.type == "cpu" and why_not(name, x) is None:
        return "on cpu tensors its kernels are interpreted, which takes asking for it by name"
    return why_not(name, x)


def backend_for(x: Tensor) -> str:
    """The name of the backend that runs a call on tensors like `x`.

    Raises:
        ValueError: where a backend was asked for by name and cannot run.
    """
    if forced := _asked_for():
        if reason := why_not(forced, x):
            raise ValueError(f"backend {forced!r} was asked for but cannot run: {reason}")
        return forced
    if x.is_cpu and x.dtype in _NATIVE and load("native").why_not_built(x.dtype) is None:
        return "native"
    if x.is_cuda and (reason := why_not("triton", x)):
        _warn(f"pac_ops takes the slow reference path on this GPU, since backend 'triton' cannot run: {reason}")
    return _first(x, BACKENDS)


def _first(x: Tensor, names: Sequence[str]) -> str:
    return next(name for name in names if _why_not_unasked(name, x) is None)


@cache
def _warn(message: str) -> None:
    """Warn of this, once."""
    warnings.warn(message, stacklevel=2)


def explain(x: Tensor) -> str:
    """Which backend a call on tensors like `x` would use, and why not the others: a line each, in their order."""
    forced, lines = _asked_for(), []
    chosen = forced or _first(x, BACKENDS)
    for name in BACKENDS:
        reason = why_not(name, x) if forced else _why_not_unasked(name, x)
        if name == chosen and forced:
            told = f"asked for by name, but {reason}" if reason else "chosen, asked for by name"
        elif name == chosen:
            told = "chosen, the first that can run"
        else:
            told = f"no, {reason}" if reason else "could run"
        lines.append(f"{name}: {told}")
    return "\n".join(lines)


def _asked_for() -> str | None:
    name = _forced.get()
    if name is None and _variable in _environment and (name := os.environ[ENVIRONMENT_VARIABLE]):
        return _check_name(name, ENVIRONMENT_VARIABLE)
    return name or None


def implementation(x: Tensor) -> Any:
    """The module of `backend_for`, chosen once for each device and dtype where none is asked for."""
    if _forced.get() is not None or _variable in _environment:
        return _module(x)
    key = (x.device, x.dtype)
    module = CHOSEN.get(key)
    if module is None:
        module = CHOSEN[key] = _module(x)
    return module


def _module(x: Tensor) -> Any:
    name = backend_for(x)
    return load(_NATIVE[x.dtype] if name == "native" else name)


@cache
def load(name: str) -> Any:
    """The module that implements backend `name`, or one of `native`'s for a dtype, imported on first use."""
    return import_module(f"pac_ops.backends.{_MODULES.get(name, name)}")


def _check_name(name: str, argument: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{argument} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name
