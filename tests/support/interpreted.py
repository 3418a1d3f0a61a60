"""Triton's interpreter, where TRITON_INTERPRET=1: made faster, and known to work, or the tests that import this skip."""

import os

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if INTERPRETED:
    from triton.runtime import interpreter

    # Checking every integer operation for overflow takes two thirds of the time.
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)

    @triton.jit
    def _loop(n):
        for _ in range(n):
            pass

    try:
        _loop[(1,)](1)
    except interpreter.InterpreterError:  # Triton 3.6 and before with numpy 2.4 and later
        pytest.skip("this Triton's interpreter cannot run a loop with this numpy", allow_module_level=True)
