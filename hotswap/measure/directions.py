"""The principal directions of guides on data, from which learned projections start."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.errors import HotswapError
from hotswap.measure.compare import run, swapped_layers
from hotswap.network.dry_run import removed_afterwards
from hotswap.targets.convolution import SwappedLayer
from hotswap.targets.forward_ops import Shared, fitted_guides, image_size

Rows = tuple[tuple[float, ...], ...]


class _Moments:
    """Sums over pixels of a guide and of its products, in float64."""

    def __init__(self) -> None:
        self.count, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, guide: Tensor) -> None:
        pixels = guide.detach().double().movedim(1, -1).flatten(0, -2).cpu()  # [pixels, G]
        self.count += len(pixels)
        self.total, self.products = self.total + pixels.sum(0), self.products + pixels.T @ pixels

    def directions(self, path: str, channels: int) -> Tensor:
        """The first eigenvectors of the covariance, [channels, G]; the largest component of each is positive."""
        size = self.total.numel()
        if not self.count or self.total.dim() == 0:
            raise HotswapError(f"target {path!r} was not called on these batches, so its guide cannot be measured")
        if channels > size:
            raise HotswapError(
                f"projection must be at most the {size} channels of the guide of target {path!r}, got {channels}"
            )
        mean = self.total / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        if not bool(covariance.isfinite().all()):
            raise HotswapError(f"the guide of target {path!r} has values that are not finite on these batches")
        rows = torch.linalg.eigh(covariance).eigenvectors.flip(1).T[:channels]
        signs = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
        turned: Tensor = rows * signs
        return turned


def principal_projections(
    model: nn.Module, data: Iterable[tuple[Any, ...]], targets: Sequence[str], channels: int, window: int
) -> Mapping[str, Rows]:
    """For each of these swapped layers, the rows of a projection of its guide to so many channels.

    They are the principal directions over all pixels, at the target's size, in the middle of the window. So distances
    change least: they are those of the guide but for what its last directions add.

    Raises:
        HotswapError: where a guide has fewer channels, or is never seen or not finite.
    """
    layers = {path: layer for path, layer in swapped_layers(model).items() if path in targets}
    seen = {path: _Moments() for path in layers}

    def hook_for(path: str) -> Any:
        def hook(layer: SwappedLayer, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            input, guides = (*arguments, *keywords.values())
            entry, given = layer.swap, guides.guides if isinstance(guides, Shared) else tuple(guides)
            fitted = fitted_guides(entry.guide, given, image_size(path, input), layer.sliding, entry.resize)
            seen[path].add(torch.cat([x.double() for x in fitted], dim=1))

        return hook

    hooks = (x.register_forward_pre_hook(hook_for(path), with_kwargs=True) for path, x in layers.items())
    with removed_afterwards(hooks):
        for arguments in data:
            run(model, arguments)
    rows = {path: moments.directions(path, channels) for path, moments in seen.items()}
    return {path: tuple(map(tuple, _in_the_middle(x, window).tolist())) for path, x in rows.items()}


def _in_the_middle(rows: Tensor, window: int) -> Tensor:
    """[P, G] at the middle pixel of a window: [P, G k k], as float32 holds it."""
    placed = rows.new_zeros(*rows.shape, window, window)
    placed[:, :, window // 2, window // 2] = rows
    return placed.flatten(1).float()
