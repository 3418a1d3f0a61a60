"""The enlargements of a network, found in one run on fake tensors."""

import functools
import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from hotswap.network.dry_run import Inputs, hookable, mode, removed_afterwards, run_once
from hotswap.targets.call_sites import begun, chain_here
from hotswap.targets.dataflow import Flow, Place, leaves
from hotswap.targets.enlargement import mode_of, why_not_enlarged
from hotswap.targets.entries import Resize, named
from hotswap.targets.origins import Origins
from pac_ops.geometry import Pair

ALIAS = "resize"
VALUES = 3  # channels, at most, of depth, flow, a matte or an image; scores of classes have more
_SHUFFLE = "pixel shuffle"
_LEARNED: dict[Any, str] = {  # torch.nn.functional's are these
    torch.conv_transpose2d: "transposed convolution",
    torch.pixel_shuffle: _SHUFFLE,
}
_RESHAPING = frozenset({torch.reshape, Tensor.reshape, Tensor.view})  # which a pixel shuffle by hand ends with
_SIGNATURE = inspect.signature(F.interpolate)


class Identity(NamedTuple):
    """The identity of a call of F.interpolate among those of one forward, the same at any size."""

    key: str  # of its chain: see `call_sites`
    origins: frozenset[str] | None = None  # of its input, where several calls may have the chain
    turn: int = 0  # among calls alike in both, which nothing tells apart while the network runs


@dataclass(frozen=True)
class Site:
    """One place where a map changes its size, at its first call."""

    path: str  # of the module, or of the one whose forward calls F.interpolate
    call: int | None  # which of that forward's calls; None where the module itself is meant
    mode: str
    input_size: Pair
    output_size: Pair
    why_not: str | None  # None where it can be guided
    identity: Identity | None = None  # of the call; None where the module itself is meant
    at: tuple[str, ...] = ()  # the same as a plan keeps it, on any machine
    place: Place | None = None  # of an enlargement that the outputs depend on, in all its calls
    channels: int = 0  # of the map

    @property
    def name(self) -> str:
        """The site in a few words."""
        return named(self.path, self.call)


@dataclass
class Sites:
    """All sites of a network, in the order of their first call; and the sizes of its image and modules' outputs."""

    by_call: dict[tuple[str, int | None], Site] = field(default_factory=dict)  # by path and number
    image_size: Pair | None = None  # of the network's first argument; None where it is no image
    sizes: dict[str, Pair] = field(default_factory=dict)  # by path, of modules that give a map
    output_size: Pair | None = None  # of the finest map that the network gives
    output_channels: int = 0  # of that map, where it is [B, C, H, W] and holds no whole numbers
    learned: dict[str, str] = field(default_factory=dict)  # by where, what enlarges there by weights of its own
    # By path: the calls of F.interpolate in that module's forward.
    calls: dict[str, dict[Identity, int]] = field(default_factory=dict)
    # By path and chain: the calls that had the chain, in order, in each forward of the module.
    turns: dict[tuple[str, str], set[tuple[int, ...]]] = field(default_factory=dict)
    # In order: paths of modules whose calls ended, and names of calls of F.interpolate.
    events: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.by_call.values())

    @cached_property
    def by_alias(self) -> dict[str, Site]:
        """`resize_{index}`, counted from 1, -> site."""
        return {f"{ALIAS}_{index}": site for index, site in enumerate(self, start=1)}

    @cached_property
    def alias_of(self) -> dict[Site, str]:
        """Site -> alias."""
        return {site: alias for alias, site in self.by_alias.items()}


def find(model: nn.Module, example_inputs: Inputs | None, known: Iterable[Resize] = ()) -> Sites:
    """Run a network on fake tensors, and note each `F.interpolate`, `nn.Upsample` and bilinear `nn.ConvTranspose2d`.

    Args:
        model: the network.
        example_inputs: as for `observe`.
        known: enlargements whose calls of `F.interpolate` keep their numbers, which depend on the size otherwise.

    Raises:
        HotswapError: where it cannot be run on fake tensors.
    """
    watch = _Watch(model, known)
    with mode(model, training=False), watch.hooked(), watch:  # the mode first: GraphModules may have other forwards
        run_once(model, example_inputs, watch.restart, watch.flow)
    return watch.sites


@dataclass(eq=False)
class _Forward:
    """A running forward."""

    module: nn.Module
    origins: Origins
    calls: Counter[tuple[str, frozenset[str] | None]] = field(default_factory=Counter)
    turns: dict[str, list[int]] = field(default_factory=dict)


class _Watch(TorchFunctionMode):
    """Follows the running forwards, and numbers the calls of F.interpolate in each."""

    def __init__(self, model: nn.Module, known: Iterable[Resize]) -> None:
        super().__init__()
        self._paths = {module: path for path, module in model.named_modules()}
        self._modes = {module: mode_of(module) for module in self._paths}  # reads weights, so not during the run
        self._numbers = {(x.target, x.at): x.call for x in known if x.call is not None and x.at}
        self._running: list[_Forward] = []
        self._names: dict[nn.Module, dict[nn.Module, str]] = {}  # by module, of those inside it
        self._constants = _Constants(model)
        self._function = ""  # what the network calls at the moment
        self.flow = Flow(self._doing)
        self.restart()

    def restart(self) -> None:
        """Forget what was seen of an attempt that failed."""
        self.sites = Sites()
        self._unmet = dict(self._numbers)

    def _doing(self, operator: str) -> str:
        """What runs at the moment: a module that has none inside, or a function in one that has."""
        module = self._running[-1].module if self._running else None
        path = "" if module is None else self._paths[module]
        if module is not None and path and next(module.children(), None) is None:
            return path
        return f"{self._function or operator} in {path or 'the network'}"

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Follow the modules' calls."""
        before = {module: module.__dict__.get("forward") for module in self._paths}
        handles = [module.register_forward_pre_hook(self._begun) for module in self._paths]
        handles += [module.register_forward_hook(self._ended, always_call=True) for module in self._paths]
        for module in filter(hookable, self._paths):
            module.__dict__["forward"] = self._followed(module, module.forward)
        try:
            with removed_afterwards(handles):
                yield
        finally:
            for module, forward in before.items():
                if forward is not None:
                    module.__dict__["forward"] = forward
                else:
                    module.__dict__.pop("forward", None)

    def _followed(self, module: nn.Module, plain: Callable[..., Any]) -> Callable[..., Any]:
        changed = isinstance(module, nn.Upsample) and type(module).forward is not nn.Upsample.forward
        enlarges = self._modes[module] is not None and not changed

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            path = self._paths[module]
            self._running.append(_Forward(module, Origins(args, kwargs)))
            try:
                with self.flow.hidden() if enlarges else nullcontext():
                    output = begun(plain, *args, **kwargs)
                for key, turns in self._running[-1].turns.items():
                    self.sites.turns.setdefault((path, key), set()).add(tuple(turns))
                return output
            finally:
                self._running.pop()

        return forward

    def _begun(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._running:
            if self._name(module) is not None:
                self._running[-1].origins.enter()
        elif self._paths[module] == "":
            self.restart()
            self.flow.begin(inputs)
            self.sites.image_size = _size(inputs[0] if inputs else None)
            self._constants.forget()  # the inputs themselves were made by functions

    def _ended(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        path, fine = self._paths[module], _size(output)
        self.sites.events.append(path)
        if self._running and (name := self._name(module)) is not None:
            self._running[-1].origins.leave(name, inputs, output)
        if (mode := self._modes[module]) is not None:
            self._note(path, None, mode, inputs[0] if inputs else None, output, why_not_enlarged(mode, module))
        if fine is not None:  # only now, as nothing guides itself
            self.sites.sizes.setdefault(path, fine)
        if not self._running and path == "":
            places = self.flow.places(output)
            sizes = ((_map_size(x, self.sites.image_size), x) for x in leaves(output))
            maps = [(size, _channels(x)) for size, x in sizes if size is not None]
            if maps:
                self.sites.output_size, self.sites.output_channels = max(maps, key=lambda each: math.prod(each[0]))
            self.sites.by_call |= {
                key: replace(site, place=places.get(key)) for key, site in self.sites.by_call.items()
            }

    def _name(self, module: nn.Module) -> str | None:
        """The name of a module inside the one whose forward runs; None outside it, and where hooks cannot be."""
        owner = self._running[-1].module
        names = self._names.get(owner)
        if names is None:
            names = self._names[owner] = {m: n for n, m in owner.named_modules() if n and hookable(m)}
        return names.get(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note calls of F.interpolate, but for those of modules that are sites themselves."""
        kwargs = kwargs or {}
        before, self._function = self._function, str(getattr(func, "__name__", "")).strip("_")
        try:
            with self.flow.hidden() if self._enlarges(func) else nullcontext():
                result = func(*args, **kwargs)
        finally:
            self._function = before
        self._constants.follow(func, (args, kwargs), result)
        if not self._running:
            return result
        forward = self._running[-1]
        if self._modes[forward.module] is None and (kind := _learned(func, result, args, kwargs)) is not None:
            self.sites.learned[self._paths[forward.module]] = kind
        if self._enlarges(func):
            given = bound(args, kwargs)
            mode = given["mode"]
            why_not = why_not_enlarged(mode, antialias=given["antialias"])
            named = self._identify(forward, given["input"])
            self._note(self._paths[forward.module], named, str(mode), given["input"], result, why_not)
        forward.origins.follow(func, args, kwargs, result)
        return result

    def _enlarges(self, func: Any) -> bool:
        """Whether a function is an enlargement by itself, and not what a module does that is one."""
        return func is F.interpolate and bool(self._running) and self._modes[self._running[-1].module] is None

    def _identify(self, forward: _Forward, given: Any) -> "_Named":
        """The number and identity of the running call of F.interpolate among its forward's."""
        chain, path = chain_here(), self._paths[forward.module]
        origins = forward.origins.of(given) if chain.repeats else None
        turn = forward.calls[chain.key, origins]
        forward.calls[chain.key, origins] += 1
        identity = Identity(chain.key, origins, turn)
        of = [f"of {origin}" for origin in sorted(origins or ())]
        at = (*chain.at, *of, *([f"turn {turn}"] if turn else []))
        calls = self.sites.calls.setdefault(path, {})
        if identity not in calls:
            taken = {*calls.values(), *(number for (target, _), number in self._numbers.items() if target == path)}
            free = next(number for number in itertools.count() if number not in taken)
            calls[identity] = self._unmet.pop((path, at), free)
        forward.turns.setdefault(chain.key, []).append(calls[identity])
        self.sites.events.append(named(path, calls[identity]))
        return _Named(calls[identity], identity, at)

    def _note(
        self,
        path: str,
        named: "_Named | None",
        mode: str,
        given: Any,
        result: Any,
        why_not: str | None,
    ) -> None:
        call, identity, at = named or _Named(None)
        self.flow.enlarged((path, call), given, result)
        coarse, fine = _size(given), _size(result)
        if coarse is None or fine is None:
            return
        if why_not is None and (fine[0] < coarse[0] or fine[1] < coarse[1] or fine == coarse):
            why_not = f"it does not enlarge ({coarse[0]} x {coarse[1]} to {fine[0]} x {fine[1]})"
        if why_not is None and math.prod(coarse) == 1:
            why_not = "its input is a single pixel, so there is nothing to weigh"
        if why_not is None and given in self._constants:
            why_not = "what it enlarges is the same for every image: a position embedding, or the like"
        sizes = (self.sites.image_size, *self.sites.sizes.values())
        if why_not is None and not any(fine_enough(size, fine) for size in sizes):
            why_not = f"nothing before it is as fine as its output of {fine[0]} x {fine[1]}"
        site = Site(path, call, mode, coarse, fine, why_not, identity, at, channels=given.shape[1])
        self.sites.by_call.setdefault((path, call), site)


class _Named(NamedTuple):
    call: int | None
    identity: Identity | None = None
    at: tuple[str, ...] = ()


class _Constants:
    """The parameters and buffers of a network, and tensors computed from nothing else."""

    def __init__(self, model: nn.Module) -> None:
        self._stored = {id(x) for x in (*model.parameters(), *model.buffers())}
        self._computed: dict[int, Tensor] = {}  # kept, as an id is given again once its tensor is gone

    def __contains__(self, x: Any) -> bool:
        return id(x) in self._stored or id(x) in self._computed

    def forget(self) -> None:
        """Forget the tensors computed from them."""
        self._computed.clear()

    def follow(self, func: Any, given: Any, result: Any) -> None:
        """Note the results of a function of constants."""
        if all(x in self for x in pytree.tree_leaves(given) if isinstance(x, Tensor)):
            self._computed |= {id(x): x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)}
        elif _writes(func):
            self.forget()  # as it may write into any of these, through a view


def _learned(func: Any, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What a function is that enlarges a map by weights that the network learned; None for others."""
    given, fine = args[0] if args else kwargs.get("input"), _size(result)
    if fine is None:
        return None
    if func in _RESHAPING:
        return _SHUFFLE if isinstance(given, Tensor) and _shuffles(given, fine) else None
    coarse = _size(given)
    return _LEARNED.get(func) if coarse is not None and math.prod(fine) > math.prod(coarse) else None


def _shuffles(x: Tensor, size: Pair) -> bool:
    """Whether a map of that size is made of [B, C, h, n, w, n] whose n were channels: their steps are the larger."""
    if x.dim() != 6 or not x.shape[3] == x.shape[5] > 1:
        return False
    merged = (x.shape[2] * x.shape[3], x.shape[4] * x.shape[5])
    return merged == size and x.stride(3) > x.stride(2) and x.stride(5) > x.stride(4)


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def fine_enough(size: Pair | None, output_size: Pair) -> bool:
    """Whether a guide is as fine as an output, give or take the pixels that odd sizes add: less than a third."""
    return size is not None and all(4 * side > 3 * fine for side, fine in zip(size, output_size, strict=True))


def bound(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of F.interpolate by name, defaults included."""
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    return given.arguments


def _map_size(x: Tensor, image: Pair | None) -> Pair | None:
    """The size of a map in an output; what is no [B, C, h, w] counts as a map if it has the image's proportions."""
    if x.dim() < 3 or x.dim() == 4 or image is None:
        return _size(x)
    height, width = int(x.shape[-2]), int(x.shape[-1])
    return (height, width) if height * image[1] == width * image[0] else None


def _channels(x: Tensor) -> int:
    return int(x.shape[1]) if x.dim() == 4 and x.is_floating_point() else 0


def _size(x: Any) -> Pair | None:
    return (int(x.shape[2]), int(x.shape[3])) if isinstance(x, Tensor) and x.dim() == 4 else None
