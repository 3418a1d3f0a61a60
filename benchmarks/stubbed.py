"""Triton launches that do nothing, on CPU tensors: what is left is the Python before a launch."""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found"

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton

from pac_ops.backends import choose
from pac_ops.backends.triton import launch

PROPERTIES = types.SimpleNamespace(  # of an H200
    major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=227 * 2**10
)


class _Driver:
    """A GPU that is not there, to Triton."""

    get_current_target = staticmethod(lambda: triton.backends.compiler.GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda _=None: 0)


class _Compiled:
    """What Triton returns of a launch: a compiled kernel."""

    function = packed_metadata = None

    @staticmethod
    def run(*_: Any) -> None:
        pass


@contextmanager
def stubbed(backend: Any = None) -> Iterator[None]:
    """In this block calls on CPU tensors take the Triton backend, nothing is compiled, and nothing is computed.

    `backend`: instead of it, one that calls it.
    """
    cpu, backend = torch.device("cpu"), backend or choose.load("triton")
    chosen = {(cpu, dtype): backend for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    driver = triton.runtime.driver
    active = "_active" if hasattr(driver, "_active") else "active"
    with (
        mock.patch.dict(choose.CHOSEN, chosen),
        mock.patch.dict(launch.PLANS, clear=True),
        mock.patch.object(driver, active, _Driver()),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=PROPERTIES),
        mock.patch.object(triton.runtime.jit.JITFunction, "run", return_value=_Compiled()),
    ):
        yield


@contextmanager
def compiling() -> Iterator[list[tuple[Any, tuple[int, int, int], dict[str, Any]]]]:
    """As `stubbed`, but what is launched is compiled: kernels, their grids and arguments."""
    compile_and_run, kernels = triton.runtime.jit.JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, **named: Any) -> _Compiled:
        kernel = compile_and_run(self, *args, grid=grid, **(named | {"warmup": True}))
        kernels.append((kernel, grid, named))
        return _Compiled()

    with stubbed(), mock.patch.object(triton.runtime.jit.JITFunction, "run", compile_only):
        yield kernels
