"""Where a network enlarges its maps: found in one run on fake tensors."""

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from hotswap.observe import Inputs, observe
from hotswap.resizing.layers import mode_of, why_not_enlarged
from hotswap.resizing.plan import named
from pac_ops.geometry import Pair

ALIAS = "resize"
_SIGNATURE = inspect.signature(F.interpolate)


class Line(NamedTuple):
    """Where a forward calls F.interpolate, which tells its calls from each other whatever comes between them."""

    file: str
    number: int
    turn: int  # of several calls from there in one forward


@dataclass(frozen=True)
class Site:
    """One place where a map changes its size, at its first call."""

    path: str  # of the module, or of the one whose forward calls F.interpolate
    call: int | None  # which of that forward's calls; None where the module itself is meant
    mode: str
    input_size: Pair
    output_size: Pair
    why_not: str | None  # None where it can be guided
    line: Line | None = None  # the code that calls F.interpolate; None where the module itself is meant

    @property
    def name(self) -> str:
        """The site in a few words."""
        return named(self.path, self.call)

    @property
    def doubles(self) -> bool:
        """Whether it enlarges by 2 or more along both axes; an odd size was rounded up when it was halved."""
        return all(fine >= 2 * coarse - 1 for fine, coarse in zip(self.output_size, self.input_size, strict=True))


@dataclass(frozen=True)
class Sites:
    """All sites of a network, in the order of their first call; and the sizes of its image and modules' outputs."""

    found: tuple[Site, ...]
    image_size: Pair | None  # of the network's first argument; None where it is no image
    sizes: Mapping[str, Pair]  # by path, of modules that give a map

    @cached_property
    def by_alias(self) -> dict[str, Site]:
        """`resize_{index}`, counted from 1, -> site."""
        return {f"{ALIAS}_{index}": site for index, site in enumerate(self.found, start=1)}

    @cached_property
    def alias_of(self) -> dict[Site, str]:
        """Site -> alias."""
        return {site: alias for alias, site in self.by_alias.items()}


def find(model: nn.Module, example_inputs: Inputs | None) -> Sites:
    """Run a network on fake tensors, and note each `F.interpolate`, `nn.Upsample` and bilinear `nn.ConvTranspose2d`.

    Raises:
        HotswapError: where it cannot be run on fake tensors.
    """
    watch = _Watch(model)
    with watch.hooked(), watch:
        observe(model, example_inputs)
    return Sites(tuple(watch.found.values()), watch.image_size, watch.sizes)


class _Watch(TorchFunctionMode):
    """Knows which module's forward runs, and which of its calls of F.interpolate this is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: dict[tuple[str, int | None], Site] = {}
        self.image_size: Pair | None = None
        self.sizes: dict[str, Pair] = {}
        self._paths = {module: path for path, module in model.named_modules()}
        self._modes = {module: mode_of(module) for module in self._paths}  # reads weights, so not during the run
        self._running: list[tuple[nn.Module, Lines]] = []  # forwards, and the calls that they made so far
        self._constants = _Constants(model)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Follow the modules' calls."""
        handles = []
        for module in self._paths:
            handles.append(module.register_forward_pre_hook(self._begun))
            handles.append(module.register_forward_hook(self._ended))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begun(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._paths[module] == "":
            self.image_size = _size(inputs[0] if inputs else None)
            self._constants.forget()  # the inputs themselves were made by functions
        self._running.append((module, Lines()))

    def _ended(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._running.pop()
        path, fine = self._paths[module], _size(output)
        if (mode := self._modes[module]) is not None:
            self._note(path, None, mode, inputs[0] if inputs else None, fine, why_not_enlarged(mode, module))
        if fine is not None:  # only now, as nothing guides itself
            self.sizes.setdefault(path, fine)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note calls of F.interpolate, but for those of modules that are sites themselves."""
        result = func(*args, **(kwargs or {}))
        self._constants.follow(func, (args, kwargs), result)
        if func is F.interpolate and self._running:
            module, lines = self._running[-1]
            if self._modes[module] is None:
                given = bound(args, kwargs or {})
                mode = given["mode"]
                why_not = why_not_enlarged(mode, antialias=given["antialias"])
                call, line = len(lines), lines.next(calling_line())
                self._note(self._paths[module], call, str(mode), given["input"], _size(result), why_not, line)
        return result

    def _note(
        self,
        path: str,
        call: int | None,
        mode: str,
        given: Any,
        fine: Pair | None,
        why_not: str | None,
        line: Line | None = None,
    ) -> None:
        coarse = _size(given)
        if coarse is None or fine is None:
            return
        if why_not is None and (fine[0] < coarse[0] or fine[1] < coarse[1] or fine == coarse):
            why_not = f"it does not enlarge ({coarse[0]} x {coarse[1]} to {fine[0]} x {fine[1]})"
        if why_not is None and math.prod(coarse) == 1:
            why_not = "its input is a single pixel, so there is nothing to weigh"
        if why_not is None and given in self._constants:
            why_not = "what it enlarges is the same for every image: a position embedding, or the like"
        if why_not is None and not any(fine_enough(size, fine) for size in (self.image_size, *self.sizes.values())):
            why_not = f"nothing before it is as fine as its output of {fine[0]} x {fine[1]}"
        self.found.setdefault((path, call), Site(path, call, mode, coarse, fine, why_not, line))


class _Constants:
    """The parameters and buffers of a network, and what is made of nothing but these and numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {id(x) for x in (*model.parameters(), *model.buffers())}
        self._made: dict[int, Tensor] = {}  # kept, as an id is given again once its tensor is gone

    def __contains__(self, x: Any) -> bool:
        return id(x) in self._own or id(x) in self._made

    def forget(self) -> None:
        """What was made of them is no longer known."""
        self._made.clear()

    def follow(self, func: Any, given: Any, result: Any) -> None:
        """Note what a function makes of what it is given."""
        if all(x in self for x in pytree.tree_leaves(given) if isinstance(x, Tensor)):
            self._made |= {id(x): x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)}
        elif _writes(func):
            self.forget()  # as it may write into any of these, through a view


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def fine_enough(size: Pair | None, output_size: Pair) -> bool:
    """Whether a guide is as fine as an output, give or take the pixels that odd sizes add: less than a third."""
    return size is not None and all(4 * own > 3 * fine for own, fine in zip(size, output_size, strict=True))


def bound(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of F.interpolate by name, defaults included."""
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    return given.arguments


class Lines(list[tuple[str, int]]):
    """The calls of F.interpolate that one forward has made."""

    def next(self, place: tuple[str, int]) -> Line:
        """Add a call."""
        self.append(place)
        return Line(*place, self.count(place) - 1)


def calling_line() -> tuple[str, int]:
    """File and line of the call of F.interpolate that is going on, whatever modes it went through."""
    frame = _behind(sys._getframe(1), lambda code: code is F.interpolate.__code__)
    caller = _behind(frame, lambda code: code is not F.interpolate.__code__ and code.co_name not in _MODES)
    return caller.f_code.co_filename, caller.f_lineno


_MODES = ("__torch_function__", "handle_torch_function")


def _behind(frame: FrameType, is_it: Callable[[CodeType], bool]) -> FrameType:
    """The nearest frame that called this one, for whose code this holds."""
    while frame.f_back is not None and not is_it(frame.f_code):
        frame = frame.f_back
    return frame


def _size(x: Any) -> Pair | None:
    return (int(x.shape[2]), int(x.shape[3])) if isinstance(x, Tensor) and x.dim() == 4 else None
