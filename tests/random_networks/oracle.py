"""The plain network, run with the chosen calls intercepted: what a swapped one must compute.

It shares no code with hotswap. Modules are followed by hooks, and the functions of torch.nn.functional that layers
call are replaced while it runs. A call is known by the module whose forward makes it and the chain of lines from there.
"""

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import equations
from .program import is_ours, text_of_line

INPUT = "input"
Place = tuple[str, tuple[str, ...]]  # a module's path, and the lines from its forward to the call; none: the module


@dataclass(frozen=True)
class Target:
    """What is to be intercepted."""

    place: Place
    guides: tuple[str, ...]  # module paths, and "input"
    scale: float
    enlarges: bool


@dataclass(frozen=True)
class Rules:
    """How."""

    targets: tuple[Target, ...]
    resize: str = "bilinear"
    footprint: int = 2
    kernel: str = "gaussian"
    # Where a guide is caught: the path of an activation's module, or the mark of a line, after it; else at its own.
    after: dict[tuple[bool, str], str] = field(default_factory=dict)  # by whether the target enlarges, and guide


@dataclass
class Seen:
    """One call of something, in a plain run."""

    place: Place
    kind: str
    coarse: tuple[int, int] | None
    fine: tuple[int, int] | None
    began: int
    ended: int


_INTERPOLATE = inspect.signature(F.interpolate)


def _parameters(*names: str, **defaults: Any) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = [inspect.Parameter(name, kind) for name in names]
    return inspect.Signature(found + [inspect.Parameter(name, kind, default=x) for name, x in defaults.items()])


_CONV = _parameters("input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
_TRANSPOSED = _parameters("input", "weight", bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
_POOL = _parameters(
    "input", "kernel_size", stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
)
_FUNCTIONS = ("conv2d", "conv_transpose2d", "avg_pool2d", "interpolate", "pad")
_ACTIVATIONS = ((F, "relu"), (F, "leaky_relu"), (torch, "relu"), (Tensor, "relu"), (Tensor, "sigmoid"))


@dataclass
class _Running:
    path: str
    module: nn.Module
    input: Any
    pads: list[tuple[Any, ...]] = field(default_factory=list)
    began: int = 0
    done: bool = False
    turns: dict[tuple[str, ...], int] = field(default_factory=dict)


@dataclass
class _Caught:
    value: Tensor  # a copy, as it may be overwritten
    made_by: Any  # the node of the autograd graph
    when: int


class Oracle:
    """Runs a plain network, and intercepts."""

    def __init__(self, network: nn.Module, rules: Rules) -> None:
        self.network, self.rules = network, rules
        self.paths = {module: path for path, module in network.named_modules()}
        self.by_place = {target.place: target for target in rules.targets}
        guides = {guide for target in rules.targets for guide in target.guides} - {INPUT}
        self.wanted = guides | set(rules.after.values())
        self.scales: dict[Place, Tensor] = {}  # of targets, where something else than a number
        self.stack: list[_Running] = []
        self.caught: dict[str, list[_Caught]] = {}
        self.seen: list[Seen] = []
        self.steered = self.time = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network computes."""
        self.caught, self.seen, self.steered, self.time = {}, [], 0, 0
        with self._intercepting():
            return self.network(*args, **kwargs)

    # --- following -------------------------------------------------------------------------------------------

    @contextmanager
    def _intercepting(self) -> Iterator[None]:
        handles = []
        for module in self.paths:
            handles.append(module.register_forward_pre_hook(self._begun, with_kwargs=True))
            handles.append(module.register_forward_hook(self._ended, with_kwargs=True))
        plain = {name: getattr(F, name) for name in _FUNCTIONS}
        activations = [(owner, name, getattr(owner, name)) for owner, name in _ACTIVATIONS]
        mine = {
            "conv2d": self._conv2d,
            "conv_transpose2d": self._conv_transpose2d,
            "avg_pool2d": self._avg_pool2d,
            "interpolate": self._interpolate,
            "pad": self._pad,
        }
        self.plain = plain
        files = {kind.__module__ for kind in map(type, self.paths) if kind.__module__.startswith("random_")}
        checkpoints = [(sys.modules[file], sys.modules[file].checkpoint) for file in files if "network" in file]
        try:
            for file, _ in checkpoints:  # they change no number, and would run what is intercepted once more
                file.checkpoint = lambda function, *args, use_reentrant: function(*args)
            for name, function in mine.items():
                setattr(F, name, function)
            for owner, name, function in activations:
                setattr(owner, name, self._watched(function))
            yield
        finally:
            for file, function in checkpoints:
                file.checkpoint = function
            for name, function in plain.items():
                setattr(F, name, function)
            for owner, name, function in activations:
                if owner is Tensor:
                    delattr(Tensor, name)  # it is inherited
                else:
                    setattr(owner, name, function)
            for handle in handles:
                handle.remove()
            self.stack.clear()

    def _begun(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if module is self.network:
            self._catch(INPUT, given)
        self.stack.append(_Running(self.paths[module], module, given, began=self._tick()))

    def _ended(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        running = self.stack.pop()
        if running.path in self.wanted:
            self._catch(running.path, output)
        self._see((running.path, ()), type(module).__name__, running.input, output, running.began)

    def _watched(self, function: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            output = function(*args, **kwargs)
            frame = sys._getframe(1)
            if is_ours(frame.f_code.co_filename):
                mark = text_of_line(frame.f_code.co_filename, frame.f_lineno)
                if mark in self.wanted:
                    self._catch(mark, output)
            return output

        return watched

    def _catch(self, name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            self.caught.setdefault(name, []).append(_Caught(output.clone(), output.grad_fn, self._tick()))

    def _tick(self) -> int:
        self.time += 1
        return self.time

    def _see(self, place: Place, kind: str, given: Any, output: Any, began: int) -> None:
        self.seen.append(Seen(place, kind, _size(given), _size(output), began, self._tick()))

    # --- guides ----------------------------------------------------------------------------------------------

    def _guides(self, target: Target, like: Tensor) -> list[Tensor]:
        """As they are for a call that reads `like`: the last call that this comes from, or else the last."""
        found = []
        for name in target.guides:
            calls = self.caught[name]
            chosen = calls[-1]
            if len(calls) > 1 and like.grad_fn is not None:
                behind = _nodes_behind(like.grad_fn)
                from_it = [call for call in calls if call.made_by in behind]
                chosen = from_it[-1] if from_it else chosen
            if (follower := self.rules.after.get((target.enlarges, name))) is not None:
                later = [x for x in self.caught.get(follower, []) if x.when > chosen.when]
                chosen = later[0] if later else chosen
            found.append(chosen.value.double())
        return found

    def _scale(self, target: Target) -> Any:
        return self.scales.get(target.place, target.scale)

    def _kernel(self, target: Target, like: Tensor, size: tuple[int, int], pads: Sequence[tuple[Any, ...]]) -> Any:
        guides = [equations.resized(g, size, self.rules.resize) for g in self._guides(target, like)]
        for args in pads:
            guides = [self.plain["pad"](g, *args) for g in guides]
        scale, name = self._scale(target), self.rules.kernel

        def kernel(kernel_size: Any, stride: Any, padding: Any, dilation: Any, out: Any) -> Tensor:
            return equations.window_kernel(guides, scale, name, kernel_size, stride, padding, dilation, out)

        return kernel

    def _target(self) -> tuple[_Running, Target] | None:
        """The layer that is running, if it is to be steered."""
        if not self.stack:
            return None
        running = self.stack[-1]
        target = self.by_place.get((running.path, ()))
        return (running, target) if target is not None and not running.done else None

    # --- what is put in the functions' place -------------------------------------------------------------------

    def _pad(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (found := self._target()) is not None:
            found[0].pads.append((*args, *kwargs.values()))
        return self.plain["pad"](input, *args, **kwargs)

    def _conv2d(self, *args: Any, **kwargs: Any) -> Tensor:
        found = self._target()
        if found is None or found[1].enlarges:
            return self.plain["conv2d"](*args, **kwargs)
        running, target = found
        running.done = True
        self.steered += 1
        given = _bound(_CONV, args, kwargs)
        dtype, like = given["input"].dtype, running.input
        kernel = self._kernel(target, like, tuple(like.shape[2:]), running.pads)
        v, weight, bias = (None if x is None else x.double() for x in list(given.values())[:3])
        return _narrowed(equations.convolution(v, weight, bias, *list(given.values())[3:], kernel), dtype)

    def _conv_transpose2d(self, *args: Any, **kwargs: Any) -> Tensor:
        found = self._target()
        if found is None:
            return self.plain["conv_transpose2d"](*args, **kwargs)
        running, target = found
        running.done = True
        self.steered += 1
        given = _bound(_TRANSPOSED, args, kwargs)
        dtype, like = given["input"].dtype, running.input
        v, weight, bias = (None if x is None else x.double() for x in list(given.values())[:3])
        if target.enlarges:
            options, mass = equations.bilinear_transposed(v, weight, bias, given["stride"], given["padding"])
            out = equations.enlarged(
                v, self._guides(target, like), self._scale(target), self.rules.footprint, options
            )
            assert out is not None
            out = out * mass
            return _narrowed(out if bias is None else out + bias[:, None, None], dtype)
        size = tuple(self.plain["conv_transpose2d"](*args, **kwargs).shape[2:])
        kernel = self._kernel(target, like, size, ())
        return _narrowed(equations.transposed(v, weight, bias, *list(given.values())[3:], kernel), dtype)

    def _avg_pool2d(self, *args: Any, **kwargs: Any) -> Tensor:
        found = self._target()
        if found is None:
            return self.plain["avg_pool2d"](*args, **kwargs)
        running, target = found
        running.done = True
        self.steered += 1
        given = _bound(_POOL, args, kwargs)
        like = given.pop("input")
        kernel = self._kernel(target, like, tuple(like.shape[2:]), ())
        return _narrowed(equations.average(like.double(), *given.values(), kernel), like.dtype)

    def _interpolate(self, *args: Any, **kwargs: Any) -> Tensor:
        plain = self.plain["interpolate"]
        if not self.stack:
            return plain(*args, **kwargs)
        running, options = self.stack[-1], _bound(_INTERPOLATE, args, kwargs)
        module = isinstance(running.module, nn.Upsample)
        place = (running.path, () if module else _lines(running))
        like, mode = options.pop("input"), options["mode"]
        target = self.by_place.get(place)
        output: Tensor | None = None
        if target is not None:
            scale, footprint = self._scale(target), self.rules.footprint
            options = {name: x for name, x in options.items() if x is not None}
            given = options if mode == "bilinear" else options | {"mode": "bilinear"}
            wide, guides = like.double(), self._guides(target, like)
            output = equations.enlarged(wide, guides, scale, footprint, given)
            self.steered += output is not None
        output = plain(like, **options) if output is None else _narrowed(output, like.dtype)
        if not module:
            self._see(place, f"F.interpolate {mode}", like, output, self._tick())
        return output


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In the dtype of the layer, and no view: what overwrites one would take its node out of the autograd graph."""
    return x.to(dtype).clone()


def _nodes_behind(node: Any) -> set[Any]:
    found, waiting = {node}, [node]
    while waiting:
        for source, _ in waiting.pop().next_functions:
            if source is not None and source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _lines(running: _Running) -> tuple[str, ...]:
    """The lines from the module's forward to the call that is going on, with the numbers of loops that they are in."""
    found: list[str] = []
    frame = sys._getframe(2)
    while frame is not None:
        code, values = frame.f_code, frame.f_locals
        if is_ours(code.co_filename):
            turns = [f"{name}={value}" for name, value in sorted(values.items()) if name.startswith("i_")]
            found.append(" ".join([text_of_line(code.co_filename, frame.f_lineno), *turns]))
        if code.co_name == "forward" and values.get("self") is running.module:
            break
        frame = frame.f_back  # type: ignore[assignment]
    chain = tuple(reversed(found)) or ("a graph's code",)
    turn = running.turns[chain] = running.turns.get(chain, -1) + 1
    return chain if turn == 0 else (*chain, f"turn {turn}")


def _bound(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    given = signature.bind(*args, **kwargs)
    given.apply_defaults()
    return dict(given.arguments)


def _size(x: Any) -> tuple[int, int] | None:
    return (int(x.shape[2]), int(x.shape[3])) if isinstance(x, Tensor) and x.dim() == 4 else None
