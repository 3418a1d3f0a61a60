"""Running a swapped network beside its plain self, and taking the distances of swapped layers out of it."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hotswap import surgery
from hotswap.errors import HotswapError
from hotswap.layers import SwappedLayer
from hotswap.observe import Inputs, as_arguments, mode
from hotswap.resizing.layers import GuidedResize

Swapped = SwappedLayer | GuidedResize
Visitor = Callable[[str, Any, Tensor, Tensor], None]


def swapped_layers(model: nn.Module) -> dict[str, Swapped]:
    """Name -> layer, in the order of the plan: a module's path, and what a plan calls a call of F.interpolate.

    Raises:
        HotswapError: where nothing is swapped.
    """
    plan = surgery.current_plan(model)
    if plan is None:
        raise HotswapError("nothing in this network is swapped; hotswap.convert it first")
    layers = {swap.target: model.get_submodule(swap.target) for swap in plan.swaps}
    layers |= {resize.name: model.get_submodule(resize.layer_path) for resize in plan.resizes}
    return {name: layer for name, layer in layers.items() if isinstance(layer, Swapped)}


@contextmanager
def visited(model: nn.Module, visit: Visitor) -> Iterator[None]:
    """Call `visit(path, layer, distance, counts)` at every call of every swapped layer.

    `distance` is [B, 1, kh, kw, Ho, Wo]; `counts`, bool [kh, kw, Ho, Wo], is where a tap is off-centre and inside
    the image: the taps whose K can differ from 1 and has an effect. For an enlargement, taps are coarse neighbours,
    and those count that have a weight.
    """

    def hook_for(path: str) -> Callable[..., None]:
        def hook(layer: Swapped, arguments: tuple[Any, ...]) -> None:
            if isinstance(layer, GuidedResize):
                if (measured := layer.measured(*arguments)) is not None:
                    visit(path, layer, *measured)
                return
            input, distance = arguments
            visit(path, layer, distance.detach(), _counting_taps(layer, input))

        return hook

    handles = [layer.register_forward_pre_hook(hook_for(path)) for path, layer in swapped_layers(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counting_taps(layer: SwappedLayer, input: Tensor) -> Tensor:
    counts = layer.sliding.valid_taps(input)
    kh, kw = layer.sliding.kernel_size
    counts[kh // 2, kw // 2] = False
    return counts


def plain_copy(model: nn.Module) -> nn.Module:
    """The network as it would be if nothing were swapped, with the very same weights."""
    plain = copy.deepcopy(model, {id(x): x for x in (*model.parameters(), *model.buffers())})
    surgery.remove(plain)
    return plain


def run(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """The output in evaluation mode, without gradients; the arguments stay as they are, whatever the network does."""
    copies = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
    with mode(model, training=False), torch.no_grad():
        return model(*copies)


class Gap:
    """How far one network's outputs are from another's, over all runs added."""

    def __init__(self) -> None:
        self.largest, self._difference, self._norm = 0.0, 0.0, 0.0

    def add(self, before: Any, after: Any) -> None:
        """Count in two outputs of the same structure."""
        for old, new in zip(tensors(before), tensors(after), strict=True):
            gap = (new - old).double()
            self.largest = max(self.largest, gap.abs().max().item() if gap.numel() else 0.0)
            self._difference += gap.square().sum().item()
            self._norm += old.double().square().sum().item()

    @property
    def relative(self) -> float:
        """||after - before|| / ||before||."""
        return float((self._difference / self._norm if self._norm else self._difference) ** 0.5)


def tensors(output: Any) -> list[Tensor]:
    """All floating tensors in a network's output, whatever nesting of sequences and mappings it comes in."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [x for item in output for x in tensors(item)]
    return []


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
