"""Optical flow in the Middlebury format."""

import struct

import numpy as np
import numpy.typing as npt

_MAGIC = b"PIEH"  # 202021.25 as a little-endian float32
_LARGEST = 100_000  # pixels along an axis; more is a damaged header


def parse(raw: bytes) -> npt.NDArray[np.float32]:
    """The flow in a .flo file's bytes, [H, W, 2], in pixels to the right and down.

    Raises:
        ValueError: where it is another file, or damaged, as the end of "FILE ...".
    """
    if raw[:4] != _MAGIC:
        raise ValueError(f"is no .flo file: it must begin with {_MAGIC!r}, got {raw[:4]!r}")
    width, height = struct.unpack("<ii", raw[4:12]) if len(raw) >= 12 else (0, 0)
    if not (0 < width < _LARGEST and 0 < height < _LARGEST):
        raise ValueError(f"is damaged: its header says {width} x {height} pixels")
    expected = 12 + 8 * width * height
    if len(raw) != expected:
        raise ValueError(f"is damaged: it must hold {expected} bytes, got {len(raw)}")
    return np.frombuffer(raw, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
