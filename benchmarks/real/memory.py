"""The memory that a call needs beyond what the process holds, as Linux counts it."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")


def peak(run: Callable[[], Any]) -> float:
    """MiB of resident memory that a call adds at its peak."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is given back, and so counted again
    (_PROCESS / "clear_refs").write_text("5")  # the peak is from here on
    before = _resident("VmRSS")
    run()
    return (_resident("VmHWM") - before) / 1024


def _resident(name: str) -> int:
    """KiB."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
