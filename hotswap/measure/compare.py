"""Runs a swapped network beside its plain self, and reads the distances of swapped layers."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.errors import HotswapError
from hotswap.network.copying import deep_copy
from hotswap.network.dry_run import mode, removed_afterwards
from hotswap.network.names import joined
from hotswap.network.nested import parts
from hotswap.surgery import install
from hotswap.targets.convolution import SwappedLayer
from hotswap.targets.enlargement import GuidedResize

Swapped = SwappedLayer | GuidedResize
_DRIFT = "drift (relative RMS change of the outputs)"
Visitor = Callable[[str, Any, Tensor, Tensor], None]


def swapped_layers(model: nn.Module) -> dict[str, Swapped]:
    """Swapped layers by their names in the plan, in its order.

    Raises:
        HotswapError: where nothing is swapped.
    """
    plan = install.current_plan(model)
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
        def hook(layer: Swapped, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if (measured := layer.measured(*arguments, **keywords)) is not None:
                visit(path, layer, *measured)

        return hook

    layers = swapped_layers(model).items()
    with removed_afterwards(x.register_forward_pre_hook(hook_for(path), with_kwargs=True) for path, x in layers):
        yield


def plain_copy(model: nn.Module) -> nn.Module:
    """The network as it would be if nothing were swapped, with the very same weights.

    Raises:
        HotswapError: where the network cannot be copied, with the attribute that cannot.
    """
    shared: dict[int, Any] = {id(x): x for x in (*model.parameters(), *model.buffers())}
    try:
        plain = deep_copy(model, shared)
    except Exception as error:  # whatever a user's module does when copied
        reason = str(error).partition("\n")[0]
        raise HotswapError(
            f"this needs a plain copy of the network, and {_uncopied(model, shared)} cannot be deep-copied "
            f"({type(error).__name__}: {reason}); take it out meanwhile, or give its class a __deepcopy__"
        ) from error
    install.remove(plain)
    return plain


def _uncopied(model: nn.Module, shared: dict[int, Any]) -> str:
    """The first attribute that cannot be copied, or else the network, for messages."""
    others = shared | {id(module): module for module in model.modules()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(others))
            except Exception:  # noqa: BLE001 (the copy of the network has said why)
                return f"its {joined(path, name)!r}"
    return "it"


def run(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """The output in evaluation mode, without gradients; the arguments stay as they are, whatever the network does."""
    copies = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
    with mode(model, training=False), torch.no_grad():
        return model(*copies)


def drift_text(drift: float | None, why_unknown: str | None) -> str:
    """The drift in a line, for people."""
    return f"{_DRIFT}: {drift:.3g}" if drift is not None else f"{_DRIFT}: not known, as {why_unknown}"


class Gap:
    """How far one network's outputs are from another's, over all runs added."""

    def __init__(self) -> None:
        self._unlike: str | None = None  # why outputs cannot be compared, the first reason met
        self._largest, self._difference, self._norm, self._compared = 0.0, 0.0, 0.0, False

    def add(self, before: Any, after: Any) -> None:
        """Add two outputs; where they differ in structure, shape or finiteness, the gap becomes unknown."""
        self._unlike = self._unlike or self._added(tensors(before), tensors(after))

    @property
    def why_unknown(self) -> str | None:
        """None where the gap is known."""
        if self._unlike is None and not self._compared:
            return "no finite value was found in the outputs (tensors in sequences, mappings and dataclasses are)"
        return self._unlike

    @property
    def largest(self) -> float | None:
        """Largest |after - before|; None where it is not known."""
        return self._largest if self.why_unknown is None else None

    @property
    def relative(self) -> float | None:
        """||after - before|| / ||before||; None where it is not known."""
        if self.why_unknown is not None:
            return None
        return float((self._difference / self._norm if self._norm else self._difference) ** 0.5)

    def _added(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> str | None:
        """Add two outputs' tensors; returns why they do not compare, or None."""
        if different := sorted(before.keys() ^ after.keys()):
            return f"only one of the plain and the swapped network gives output{different[0]}"
        for where, old in before.items():
            new = after[where]
            if old.shape != new.shape:
                return f"output{where} is {list(old.shape)} of the plain network and {list(new.shape)} of the swapped"
            finite = old.isfinite()  # masks are often made with -inf
            if not torch.equal(finite, new.isfinite()):
                return f"output{where} is not finite in different places of the plain and the swapped network"
            x, y = old[finite].double(), new[finite].double()
            if x.numel() == 0:
                continue
            gap = y - x
            self._compared = True
            self._largest = max(self._largest, gap.abs().max().item())
            self._difference += gap.square().sum().item()
            self._norm += x.square().sum().item()
        return None


def tensors(output: Any) -> dict[str, Tensor]:
    """The floating tensors in a network's output, by their places in sequences, mappings and dataclasses."""
    if isinstance(output, Tensor):
        return {"": output} if output.is_floating_point() else {}
    return {where + rest: x for where, item in parts(output) or () for rest, x in tensors(item).items()}
