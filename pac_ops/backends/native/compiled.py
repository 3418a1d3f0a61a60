"""The library of compiled kernels: where it is, how it is loaded and called through ctypes."""

import ctypes
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.geometry import Window

# What each kernel takes between its shapes and the number of threads: p, a pointer, or n, a number; f, a float32.
_ARGUMENTS = {
    "pac_convolution": "nppppp",
    "pac_convolution_bfloat16": "nppppp",
    "pac_convolution_backward": "ppppppp",
    "pac_convolution_backward_bfloat16": "ppppppp",
    "pac_convolution_double": "ppppp",
    "pac_convolution_backward_double": "ppppppp",
    "pac_distance": "pp",
    "pac_distance_double": "pp",
    "pac_distance_backward": "ppp",
    "pac_distance_backward_double": "ppp",
    "pac_gaussian": "pp",
    "pac_lab": "pppp",
    "pac_halve": "pp",
    "pac_pooling": "ppnppp",
    "pac_pooling_backward": "ppnppppp",
    "pac_pooling_last": "ppppp",
    "pac_with_detail": "pppp",
    "pac_enlarge": "ppppp",
    "pac_enlarge_distance": "ppppp",
    "pac_enlarge_guided": "ppppppnfnpnp",
    "pac_enlarge_distance_gradients": "ppppppp",
    "pac_enlarge_input_gradient": "ppppp",
    "pac_enlarge_kernel_gradient": "ppppp",
}
FLOAT32, BFLOAT16 = "", "_bfloat16"  # end the names of a convolution's kernels by what they multiply
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}


class CWindow(ctypes.Structure):
    """`Window` of csrc/window.h: the shapes and the sliding window of one call."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("out_channels", "out_height", "out_width", "groups")),
        *((name, ctypes.c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")),
        ("kernel_step", ctypes.c_int64 * 5),
        ("weight_step", ctypes.c_int64 * 5),
        ("out_step", ctypes.c_int64 * 4),
        ("grad_kernel_step", ctypes.c_int64 * 5),
        ("grad_weight_step", ctypes.c_int64 * 5),
    ]


def why_not_built(dtype: torch.dtype = torch.float32) -> str | None:
    """None if the compiled kernels for a dtype are there, else why not."""
    loaded = _load()
    if isinstance(loaded, str):
        return loaded
    if dtype is torch.float64 and not has("pac_convolution_double"):
        return "it was compiled before it had float64"
    return None


@cache
def has(function: str) -> bool:
    """Whether a kernel is there: those of an older version may lack it, until pac_ops is installed anew."""
    return hasattr(_load(), function)


@cache
def _load() -> ctypes.CDLL | str:
    folder = Path(__file__).parents[2]  # pac_ops
    files = [file for suffix in EXTENSION_SUFFIXES if (file := folder / f"_native{suffix}").exists()]
    if not files:
        return "it was not compiled when pac_ops was installed, which takes GCC 12 or newer"
    newest = max(files, key=lambda file: file.stat().st_mtime)  # an older one of another name may be there
    try:
        return ctypes.CDLL(str(newest))
    except OSError as error:  # an OpenMP runtime without GNU's entry points, another libc
        return f"the compiled kernels did not load: {str(error).splitlines()[0]}"


def shapes_of(input: Tensor, out: Tensor, window: Window, groups: int = 1) -> CWindow:
    """The shapes and the window of a call, as the kernels take them."""
    return _shapes(input.shape, out.shape, window, groups)


@lru_cache(maxsize=1024)  # of a small map, the sums take less time than this
def _shapes(input: torch.Size, out: torch.Size, window: Window, groups: int) -> CWindow:
    return CWindow(*input, out[1], *out[-2:], groups, *window)


def run(function: str, shapes: ctypes.Structure | ctypes.Array[Any], *arguments: Tensor | float | None) -> None:
    """Call a kernel; a tensor is passed as a pointer."""
    passed = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    if _entry(function, lanes())(ctypes.byref(shapes), *passed, torch.get_num_threads()):
        raise MemoryError(f"{function} could not allocate its buffers")


@cache
def lanes() -> int:
    """Floats in a vector of the compiled kernels (enlargement aside): 16 with AVX-512, where PyTorch uses it too."""
    wide = hasattr(_load(), "pac_convolution_avx512") and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return 16 if wide else 8


@cache
def has_bfloat16() -> bool:
    """Whether the compiled kernels multiply bfloat16 by instructions of this processor's."""
    library = _load()
    if isinstance(library, str) or not has("pac_has_bfloat16"):
        return False
    return lanes() == 16 and bool(library.pac_has_bfloat16())


@cache
def _entry(function: str, lanes: int) -> Any:
    library = _load()
    if isinstance(library, str):
        raise RuntimeError(library)  # noqa: TRY004 (`choose.backend_for` asks why_not_built first)
    wide = f"{function}_avx512"
    entry = getattr(library, wide if lanes == 16 and hasattr(library, wide) else function)
    entry.argtypes = [ctypes.c_void_p, *map(_KINDS.__getitem__, _ARGUMENTS[function]), ctypes.c_int64]
    return entry


def new_gradients(input: Tensor, kernel: Tensor, weight: Tensor, needs: Needs) -> Gradients:
    """Zeros, contiguous and float32, for each gradient that is needed."""
    grad_input, grad_kernel, grad_weight = (
        x.new_zeros(x.shape, dtype=torch.float32) if need else None
        for x, need in zip((input, kernel, weight), needs, strict=True)
    )
    return grad_input, grad_kernel, grad_weight
