"""Taking the distances of swapped layers out of a running network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hotswap import surgery
from hotswap.errors import HotswapError
from hotswap.layers import SwappedConv2d
from hotswap.observe import Inputs, as_arguments
from pac_ops.geometry import valid_taps
from pac_ops.layers import window_of

Visitor = Callable[[str, SwappedConv2d, Tensor, Tensor], None]


def swapped_layers(model: nn.Module) -> dict[str, SwappedConv2d]:
    """Path -> layer, in the order of the plan.

    Raises:
        HotswapError: where nothing is swapped.
    """
    plan = surgery.current_plan(model)
    if plan is None:
        raise HotswapError("nothing in this network is swapped; hotswap.convert it first")
    layers = {swap.target: model.get_submodule(swap.target) for swap in plan.swaps}
    return {path: layer for path, layer in layers.items() if isinstance(layer, SwappedConv2d)}


@contextmanager
def visited(model: nn.Module, visit: Visitor) -> Iterator[None]:
    """Call `visit(path, layer, distance, counts)` at every call of every swapped layer.

    `distance` is [B, 1, kh, kw, Ho, Wo]; `counts`, bool [kh, kw, Ho, Wo], is where a tap is off-centre and inside
    the image: the taps whose K can differ from 1 and has an effect.
    """

    def hook_for(path: str) -> Callable[..., None]:
        def hook(layer: SwappedConv2d, arguments: tuple[Any, ...]) -> None:
            input, distance = arguments
            visit(path, layer, distance.detach(), _counting_taps(layer, input))

        return hook

    handles = [layer.register_forward_pre_hook(hook_for(path)) for path, layer in swapped_layers(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counting_taps(layer: SwappedConv2d, input: Tensor) -> Tensor:
    window = window_of(layer)
    height, width = input.shape[2:]
    if layer.padding_mode == "zeros":
        counts = valid_taps(window, height, width, input.device)
    else:  # padded with pixels of the image, so every tap counts
        ho, wo = window.output_size(height, width)
        counts = torch.ones(*window.kernel_size, ho, wo, dtype=torch.bool, device=input.device)
    kh, kw = window.kernel_size
    counts[kh // 2, kw // 2] = False
    return counts


def as_batches(batches: Iterable[Inputs] | Tensor) -> Iterator[tuple[Any, ...]]:
    """Arguments for the network, one batch after another: a lone tensor is one batch.

    Raises:
        HotswapError: where there is none, or one is neither a tensor nor a tuple.
    """
    empty = True
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        empty = False
        yield as_arguments(batch)
    if empty:
        raise HotswapError("batches must hold at least one batch of inputs, got none")
