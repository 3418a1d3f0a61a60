"""Which backend runs a call: pure predicates tried in a fixed order, at the call, never at import.

Automatic choice takes the first backend that can run. A backend asked for by name, through
`PAC_OPS_BACKEND` or `use_backend`, runs or raises with its reason.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

ENVIRONMENT_VARIABLE = "PAC_OPS_BACKEND"
BACKENDS = ("native", "cpu", "reference")  # in the order they are tried
_CPU_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_forced: ContextVar[str | None] = ContextVar("pac_ops_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator in this block on one backend: "native", "cpu" or "reference".

    Raises:
        ValueError: for an unknown name, here; where that backend cannot run a call, at the call.
    """
    token = _forced.set(_check_name(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def why_not(name: str, x: Tensor) -> str | None:
    """None if backend `name` can run on tensors like `x`, else why it cannot."""
    if name in ("native", "cpu"):
        dtypes = _CPU_DTYPES if name == "cpu" else (torch.float32,)
        if x.device.type != "cpu":
            return f"it runs on cpu tensors, and these are on {x.device}"
        if x.dtype not in dtypes:
            return f"it has no {x.dtype}"
    return load("native").why_not_built() if name == "native" else None


def choose(x: Tensor) -> str:
    """The name of the backend that runs a call on tensors like `x`.

    Raises:
        ValueError: where a backend was asked for by name and cannot run.
    """
    forced = _asked_for()
    if forced is not None:
        if reason := why_not(forced, x):
            raise ValueError(f"backend {forced!r} was asked for but cannot run: {reason}")
        return forced
    return next(name for name in BACKENDS if why_not(name, x) is None)


def explain(x: Tensor) -> str:
    """Which backend a call on tensors like `x` would use, and why not the others: a line each, in their order."""
    forced, lines = _asked_for(), []
    chosen = forced or next(name for name in BACKENDS if why_not(name, x) is None)
    for name in BACKENDS:
        reason = why_not(name, x)
        if name == chosen and forced:
            told = f"asked for by name, but {reason}" if reason else "chosen, asked for by name"
        elif name == chosen:
            told = "chosen, the first that can run"
        else:
            told = f"no, {reason}" if reason else "could run"
        lines.append(f"{name}: {told}")
    return "\n".join(lines)


def _asked_for() -> str | None:
    forced = _forced.get()
    if forced is None and (named := os.environ.get(ENVIRONMENT_VARIABLE)):
        return _check_name(named, ENVIRONMENT_VARIABLE)
    return forced


def load(name: str) -> Any:
    """The module that implements backend `name`, imported on first use."""
    if name == "native":
        from pac_ops import native

        return native
    if name == "cpu":
        from pac_ops import cpu

        return cpu
    from pac_ops import reference

    return reference


def _check_name(name: str, argument: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{argument} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name
