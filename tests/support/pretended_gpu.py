"""A GPU that is not there: Triton compiles for it, and nothing runs."""

import types

import torch
from interpreted import triton


class _Driver:
    get_current_target = staticmethod(lambda: triton.backends.compiler.GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)


PROPERTIES = types.SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=227 * 2**10
)


def pretend(monkeypatch):
    """Have Triton and torch see it."""
    driver = triton.runtime.driver
    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", _Driver())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: PROPERTIES)
