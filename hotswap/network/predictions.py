"""The map in a network's output: scores of classes, labels or numbers, one row an image row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hotswap.errors import HotswapError
from hotswap.network.nested import parts
from pac_ops.binary import labels_of

_USUAL = ("out", "logits", "predicted_depth")  # as torchvision and transformers name it
_ROUNDING = 1.5  # pixels by which the sides of a map may miss the image's aspect ratio


@dataclass(frozen=True)
class Layout:
    """Where the map is in the output, and how it is stored. Decided once, on the plain network's first output."""

    where: str  # as Python code has it, after "output"
    shape: tuple[int, ...]
    channels_last: bool
    labels: bool  # whole numbers: labels that the network has chosen itself
    threshold: float  # of a single channel: label 1 lies above

    @property
    def channels(self) -> int:
        """Channels of the map; 1 of labels."""
        if self.labels or len(self.shape) == 3:
            return 1
        return self.shape[-1] if self.channels_last else self.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first output's map."""
        return self._sides(self.shape)

    def size_of(self, output: Any) -> tuple[int, int]:
        """Height and width of an output's map, which may vary with the image's."""
        return self._sides(_tensors(output)[self.where].shape)

    def _sides(self, shape: Sequence[int]) -> tuple[int, int]:
        first = 1 if len(shape) == 3 or self.channels_last else 2
        return shape[first], shape[first + 1]

    def map_of(self, output: Any) -> Tensor:
        """[C, H, W] of one image's output; whole numbers where they are labels."""
        x = _tensors(output)[self.where].detach()[0]
        x = x[None] if x.dim() == 2 else x.movedim(-1, 0) if self.channels_last else x
        return x.long() if self.labels else x.float()

    def labels_of(self, output: Any) -> Tensor:
        """[H, W] int64: the label of each pixel."""
        x = self.map_of(output)
        return x[0] if self.labels else labels_of(x[None] - self.threshold if self.channels == 1 else x[None])[0]


def layout_of(output: Any, image_size: tuple[int, int]) -> Layout:
    """Find the map in a network's output for one image.

    Args:
        output: tensors in sequences, mappings and dataclasses.
        image_size: height and width of the image, which tell rows and columns from channels.

    Raises:
        HotswapError: where there is none.
    """
    maps = {where: x for where, x in _tensors(output).items() if x.dim() in (3, 4) and min(_sides(x)) > 1}
    if not maps:
        given = ", ".join(f"{list(x.shape)}" for x in _tensors(output).values()) or type(output).__name__
        raise HotswapError(f"the network must give a map, [B, C, H, W] or [B, H, W], got {given}")
    usual = [f"[{key!r}]" for key in _USUAL] if isinstance(output, Mapping) else [f".{key}" for key in _USUAL]
    where = next((key for key in usual if key in maps), next(iter(maps)))
    x = maps[where]
    last = x.dim() == 4 and not _like(x.shape[2:], image_size) and _like(x.shape[1:3], image_size)
    labels = not x.is_floating_point()
    if labels and x.dim() == 4 and x.shape[3 if last else 1] != 1:
        raise HotswapError(f"a map of whole numbers must have one channel, got {list(x.shape)}")
    layout = Layout(where, tuple(x.shape), last, labels, 0.0)
    if labels or layout.channels > 1:
        return layout
    probabilities = bool(((x >= 0) & (x <= 1)).all())
    return Layout(where, tuple(x.shape), last, labels, 0.5 if probabilities else 0.0)


def _sides(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:3]) if x.dim() == 3 else tuple(sorted(x.shape[1:])[1:])


def _like(sides: torch.Size, image_size: tuple[int, int]) -> bool:
    """Whether sides have the image's aspect ratio, but for rounding."""
    factors = [side / whole for side, whole in zip(sides, image_size, strict=True)]
    slack = _ROUNDING / min(image_size)
    return abs(factors[0] - factors[1]) <= slack


def _tensors(output: Any) -> dict[str, Tensor]:
    if isinstance(output, Tensor):
        return {"": output}
    return {where + rest: x for where, item in parts(output) or () for rest, x in _tensors(item).items()}
