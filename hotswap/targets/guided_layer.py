"""The common part of swapped convolutions and guided enlargements: a named guide, its scale, and their classes."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from hotswap.errors import HotswapError
from hotswap.network.derived import over

LEARNED = (
    "guide_log_scale",
    "guide_gate",
    "guide_projection",
)  # the parameters that a swapped layer may have more than the plain one
OUTPUT_LAYER = "_hotswap_output"  # the layer that refines an output, in the module whose output it is

# The activation that a hook takes a guide at: its path, and its calls since the guide's to pass over.
Tap = tuple[str, int]


class NamedGuide:
    """The common part of a plan's entries: a target and its guide."""

    target: str
    guide: tuple[str, ...]
    guide_scale: float
    learn_scale: bool
    deviation: float | None
    guide_alias: tuple[str | None, ...]
    taps: tuple[Tap | None, ...]

    @property
    def name(self) -> str:
        """The target in a few words."""
        return self.target

    @property
    def layer_path(self) -> str:
        """The path of the swapped layer in the converted network."""
        return self.target

    @property
    def added(self) -> int:
        """Parameters that it adds to the network."""
        return int(self.learn_scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        entry: Any = self  # which is a dataclass
        return {name: _plain(value) for name, value in asdict(entry).items()}

    def check_guide(self) -> None:
        """Check the values a user or a file can get wrong.

        Raises:
            HotswapError: what is wrong.
        """
        if not self.guide:
            raise HotswapError(f"the guide of target {self.name!r} must have at least one source, got none")
        if len(self.guide_alias) not in (0, len(self.guide)):
            raise HotswapError(
                f"guide_alias must hold one alias (or null) for each of {list(self.guide)}, "
                f"got {list(self.guide_alias)}"
            )
        if len(self.taps) not in (0, len(self.guide)):
            raise HotswapError(
                f"taps must hold one [path, calls] (or null) for each of {list(self.guide)}, got {list(self.taps)}"
            )
        if not (math.isfinite(self.guide_scale) and self.guide_scale >= 0):
            raise HotswapError(f"guide_scale must be a number >= 0, got {self.guide_scale!r}")
        if self.learn_scale and self.guide_scale == 0:
            raise HotswapError(
                "guide_scale must be > 0 where learn_scale=True: a scale of 0 has no logarithm to learn"
            )
        if self.deviation is not None and not math.isfinite(self.deviation):
            raise HotswapError(f"deviation must be a finite number or null, got {self.deviation!r}")

    @property
    def guide_names(self) -> tuple[tuple[str, str | None], ...]:
        """Path (or "input") and alias of each source of the guide."""
        return tuple(zip(self.guide, self.guide_alias or (None,) * len(self.guide), strict=True))

    @property
    def guide_name(self) -> str:
        """The guide in a few words: aliases where there are any, else paths."""
        return " + ".join(alias or path for path, alias in self.guide_names)


def is_learned(name: str) -> bool:
    """Whether a name in a state_dict is that of a parameter which a swap added."""
    *path, last = name.split(".")
    return last in LEARNED or OUTPUT_LAYER in path


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


Entry = TypeVar("Entry", bound=Any)  # of a plan: a Swap or a Resize


class GuidedLayer(nn.Module, Generic[Entry]):
    """A layer that carries out one entry of a plan, with the scale s of its guide, learned or not."""

    guide_log_scale: nn.Parameter | None  # log s where the scale is learned
    _swap: Entry

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make a new instance one of the plain class, as no guide is named for it.

        Whoever builds a layer like another from its class calls this: `type(layer)(...)`.
        """
        self.__class__ = plain_class(type(self))
        self.__init__(*args, **kwargs)  # type: ignore[misc]

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called by torch in place of forward while torch.jit.trace or the old ONNX exporter runs."""
        raise HotswapError(
            f"target {self._swap.name!r} cannot be traced by torch.jit.trace, on which the old ONNX exporter and "
            "TensorBoard's add_graph rest too; write an ONNX file or an exported program by hotswap.export, or "
            "hotswap.revert the network"
        )

    @property
    def swap(self) -> Entry:
        """The entry of the plan, with the scale as it is now."""
        return replace(self._swap, guide_scale=self.guide_scale)

    @property
    def guide_scale(self) -> float:
        """The scale s of the guide, now."""
        log_scale = self.guide_log_scale
        return float(self._swap.guide_scale) if log_scale is None else log_scale.exp().item()

    @guide_scale.setter
    def guide_scale(self, scale: float) -> None:
        self.reset(guide_scale=scale)

    def reset(self, **changes: Any) -> None:
        """Change entries of `swap`; a deviation measured before no longer holds, unless given.

        Raises:
            HotswapError: where the values do not fit; nothing has changed then.
        """
        self._swap = replace(self.swap, **{"deviation": None} | changes)
        if self.guide_log_scale is not None:
            with torch.no_grad():
                self.guide_log_scale.fill_(self._swap.guide_scale).log_()

    def neutralise(self) -> None:
        """Make K 1 whatever the guide: in a copy that is only run, to be compared with the plain network."""
        self._parameters["guide_log_scale"] = None
        self._swap = replace(self._swap, guide_scale=0.0, learn_scale=False, deviation=None)

    def shown(self) -> list[str]:
        """The guide and its scale in print(model)."""
        learned = "" if self.guide_log_scale is None else " (learned)"
        return [f"guide={self._swap.guide_name}", f"guide_scale={self.guide_scale:.4g}{learned}"]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        learned = [p for name in LEARNED if (p := self._parameters.get(name)) is not None]

        def applied(x: Tensor) -> Any:
            moved = fn(x)
            if not any(x is p or x is p.grad for p in learned):
                return moved
            # Half precision would change a scale of 1e-4 by half a percent; it is used in float32 or wider anyway.
            return x.detach().to(moved.device) if moved.dtype.itemsize < x.dtype.itemsize else moved

        return super()._apply(applied, recurse)  # type: ignore[no-untyped-call]


# --- in and out -----------------------------------------------------------------------------------------------

_PLAIN = "_hotswap_plain"  # of a class like one that parametrize made: that one


def set_entry(layer: GuidedLayer[Entry], entry: Entry, device: torch.device) -> None:
    """Have a layer carry out an entry of a plan, in place; a learned scale goes to `device`."""
    layer._swap = entry
    log_scale: nn.Parameter | None = None
    if entry.learn_scale:
        log_scale = nn.Parameter(torch.tensor(entry.guide_scale, device=device).log())
    layer.register_parameter("guide_log_scale", log_scale)


def make_plain(layer: GuidedLayer[Any]) -> None:
    """Make a layer one of its plain class again, in place, with its current weights."""
    for name in LEARNED:
        layer._parameters.pop(name, None)
    del layer._swap
    layer.__class__ = plain_class(type(layer))


def swapped_type(module: nn.Module, swapped: Callable[[Any], Any]) -> Any:
    """The class that a module is given: `swapped` of its class.

    The class of a parametrised module is one that `torch.nn.utils.parametrize` made, and takes off again: then the
    same above `swapped` of the class below.
    """
    plain: Any = type(module)
    if not is_parametrized(module):
        return swapped(plain)
    parametrised = over(plain, plain.__bases__[0], swapped(plain.__bases__[0]))
    setattr(parametrised, _PLAIN, plain)
    return parametrised


def plain_class(swapped: Any) -> Any:
    """The class that a module had before it was swapped into a subclass of it.

    Of a module whose class others made of the swapped one (parametrize, `fully_shard`): the same of the plain class.
    """
    plain = swapped.__bases__[-1]
    if not issubclass(plain, GuidedLayer):
        return plain
    before = vars(swapped).get(_PLAIN)
    if before is not None and _properties(before) == _properties(swapped):
        return before
    made_since = over(swapped, plain, plain_class(plain))
    if before is not None:
        delattr(made_since, _PLAIN)
    return made_since


def _properties(kind: Any) -> set[str]:
    """The tensors of a class that parametrize made."""
    return {name for name, value in vars(kind).items() if isinstance(value, property)}
