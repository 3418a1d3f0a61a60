"""Maps as they are given: tensors, arrays or pictures; and results in the kind they came in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hotswap.choices import DEPTH, MAP_KINDS, SCORES
from hotswap.choices import LABELS as LABELS_KIND
from hotswap.enlarging import pictures
from hotswap.errors import HotswapError
from hotswap.network.names import AUTO

Array = npt.NDArray[Any]
_AXES = {  # of a map of each kind, by the number of its axes
    SCORES: {2: "[h, w]", 3: "[C, h, w]", 4: "[B, C, h, w]"},
    LABELS_KIND: {2: "[h, w]", 3: "[B, h, w]"},
    DEPTH: {2: "[h, w]", 3: "[B, h, w]", 4: "[B, C, h, w]"},
}


@dataclass(frozen=True)
class Map:
    """A map to enlarge."""

    kind: str  # one of MAP_KINDS but "auto"
    values: Tensor  # [B, C, h, w], floating; of labels [B, h, w], int64
    restored: Callable[[Tensor, bool], Any]  # the result, and whether it is labels, in the kind it came in


def read(given: Any, kind: str) -> Map:
    """Tell what a map is.

    Args:
        given: a tensor, an array or a picture.
        kind: one of MAP_KINDS.

    Raises:
        HotswapError: where it is none of these, or not of that kind.
    """
    if kind not in MAP_KINDS:
        raise HotswapError(f"kind must be one of {', '.join(MAP_KINDS)}, got {kind!r}")
    if isinstance(given, Tensor):
        return _of_tensor(given, kind, lambda x: x)
    if isinstance(given, np.ndarray):
        return _of_tensor(as_tensor(given), kind, _to_numpy)
    if pictures.is_picture(given):
        values, own_kind = pictures.values_of(given)
        chosen = own_kind if kind == AUTO else kind
        return _of_tensor(as_tensor(values), chosen, lambda x: pictures.like(given, _to_numpy(x)))
    raise HotswapError(f"map must be a tensor, a numpy array or a PIL image, got {type(given).__name__}")


def as_tensor(values: Array) -> Tensor:
    """An array as a tensor that nobody writes to; without a copy where its memory allows that.

    Raises:
        HotswapError: where its numbers are none that tensors have.
    """
    contiguous = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())
    except TypeError as error:
        raise HotswapError(f"an array must hold real numbers, got {values.dtype}") from error


def _to_numpy(x: Tensor) -> Array:
    array: Array = x.detach().cpu().numpy()
    return array


def _of_tensor(x: Tensor, kind: str, back: Callable[[Tensor], Any]) -> Map:
    if x.is_complex():
        raise HotswapError(f"map must hold real numbers, got {x.dtype}")
    if x.layout != torch.strided or x.is_meta or (x.is_floating_point() and x.element_size() < 2):
        raise HotswapError(f"map must be a dense tensor of float16 or wider, got {x.dtype}, {x.layout}, {x.device}")
    if kind == AUTO:
        kind = LABELS_KIND if not x.is_floating_point() else DEPTH if x.dim() == 2 else SCORES
    _check(x, kind)
    if kind == LABELS_KIND:
        labels = x.to(torch.int64).reshape(-1, *x.shape[-2:])
        return Map(kind, labels, lambda out, _: back(out.reshape(*x.shape[:-2], *out.shape[-2:]).to(x.dtype)))
    several = x.dim() == 4 or (kind == DEPTH and x.dim() == 3)  # a batch
    channels = 1 if x.dim() == 2 or (kind == DEPTH and x.dim() == 3) else x.shape[-3]
    values = x.reshape(x.shape[0] if several else 1, channels, *x.shape[-2:])

    def restored(out: Tensor, labelled: bool) -> Any:
        if labelled:
            return back(out if several else out[0])
        shaped = out.reshape(*x.shape[:-2], *out.shape[-2:])
        return back(shaped if x.is_floating_point() else shaped.round().to(x.dtype))

    wide = torch.float32 if x.element_size() <= 2 else torch.float64
    return Map(kind, values if x.is_floating_point() else values.to(wide), restored)


def _check(x: Tensor, kind: str) -> None:
    axes = _AXES[kind]
    if x.dim() not in axes or not x.numel():
        channels_last = x.dim() == 3 and kind == LABELS_KIND and x.shape[-1] in (3, 4)
        hint = "; colours are no labels: give indices" if channels_last else ""
        raise HotswapError(f"a map of {kind} must be {', '.join(axes.values())}, got {list(x.shape)}{hint}")
    if kind == LABELS_KIND and x.is_floating_point():
        raise HotswapError(f'a map of labels must hold whole numbers, got {x.dtype}; kind="scores" is for scores')
    if kind == SCORES and not x.is_floating_point():
        raise HotswapError(f'a map of scores must be floating, got {x.dtype}; kind="labels" is for labels')
