"""Hands calls of `F.interpolate` over to guided layers while a network runs, for networks that cannot be traced.

Guides are caught and read as in `surgery.passes`. A forward that calls `F.interpolate` runs under a mode that hands
those calls over. It knows them by the chain of calls that leads to them, and in a loop by what their input is made
of: see `Identity`. A call that only some images, or only training, makes shifts no others; one that could be either
of two is an error.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from hotswap.errors import HotswapError
from hotswap.network.derived import restore, subclass
from hotswap.network.dry_run import hookable
from hotswap.surgery import graph_calls, regraphing
from hotswap.surgery.guide_hooks import Done, Hook, Reader
from hotswap.surgery.install import CALLS
from hotswap.surgery.passes import Passes
from hotswap.surgery.past_forward import NAMES, refusing
from hotswap.surgery.slots import Slot, slots_of
from hotswap.targets.call_sites import (
    begun,
    broken,
    checkpointed,
    checkpointed_traced,
    key_here,
    key_traced,
    last_of,
    rerun_apart,
)
from hotswap.targets.enlargement import Options
from hotswap.targets.enlargement_checks import check_mode
from hotswap.targets.entries import Resize
from hotswap.targets.origins import Origins
from hotswap.targets.sites import Sites


@dataclass(frozen=True)
class Calls:
    """The guided calls of `F.interpolate` in a network, by the path of the module that makes them."""

    chains: Mapping[str, Mapping[str, "_Chain"]] = field(default_factory=dict)  # by key
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # of GraphModules: the graph's, by key

    def attach(self, passes: Passes, model: nn.Module) -> list[str]:
        """Have the guided layers make them, in place; returns the paths of GraphModules that were rewritten."""
        for path, chains in self.chains.items():
            owner = model.get_submodule(path)
            if isinstance(owner, GraphModule):
                _guide_graph(owner, passes, chains, self.numbers[path])
                continue
            calls = _Calls(passes, path, chains)
            owner.__dict__[CALLS] = calls
            if calls.follows:
                for name, module in owner.named_modules():
                    if name and hookable(module):
                        module.register_forward_pre_hook(_Enter(passes, calls, name))
                        module.register_forward_hook(_Leave(passes, calls, name), always_call=True)
            owner.__dict__[NAMES] = {key: chain.names for key, chain in chains.items()}
            plain: Any = type(owner)
            owner.__class__ = _handing_class(plain, calls.follows)
        return list(self.numbers)


def detach(passes: Passes, root: nn.Module, rewritten: Iterable[str]) -> None:
    """Undo `Calls.attach`; `rewritten` are paths in the root."""
    for path in rewritten:
        module = root.get_submodule(path)
        assert isinstance(module, GraphModule)  # noqa: S101 (for the type checker)
        regraphing.undo(module)
    for module in root.modules():
        calls: _Calls | None = module.__dict__.get(CALLS)
        if calls is not None and calls.passes is passes:
            del module.__dict__[CALLS], module.__dict__[NAMES]
            restore(module, _handing_class)


def find_calls(modules: Mapping[str, nn.Module], resizes: Sequence[Resize], sites: Sites) -> Calls:
    """The calls to be guided, which say where their guides are caught.

    Raises:
        HotswapError: where one cannot be handed over.
    """
    chains = _chains(resizes, sites)
    for path in chains:
        if "forward" in modules[path].__dict__:
            raise HotswapError(
                f"module {repr(path) if path else 'the network'} has had its forward replaced on the instance, so "
                "its calls of F.interpolate cannot be handed over; undo that first"
            )
    numbers = {
        path: {key: graph_calls.which(owner, key) for key in keys}
        for path, keys in chains.items()
        if isinstance(owner := modules[path], GraphModule)
    }
    return Calls(chains, numbers)


def _chains(resizes: Sequence[Resize], sites: Sites) -> dict[str, dict[str, "_Chain"]]:
    """The chains of the calls to be guided, with all that may come along them."""
    chains: dict[str, dict[str, _Chain]] = {}
    for resize in resizes:
        if resize.call is None:
            continue
        calls = sites.calls[resize.target]
        key, origins, _ = next(identity for identity, number in calls.items() if number == resize.call)
        alike = [identity for identity in calls if identity[:2] == (key, origins)]
        if len(alike) > 1:
            raise HotswapError(
                f"target {resize.name!r} is one of {len(alike)} calls of F.interpolate from one place "
                f"({last_of(key)}) that nothing tells apart while the network runs; choose another "
                "target, or have the code make the call in a module of its own"
            )
        chain = chains.setdefault(resize.target, {}).setdefault(key, _Chain(origins is not None, {}))
        chain.turns.update({other: chain.turns.get(other) for k, other, _ in calls if k == key})
        chain.turns[origins] = _GuidedCall(resize.layer_path.rpartition(".")[2], resize, slots_of(resize))
    return chains


# --- calls in the graphs of GraphModules -----------------------------------------------------------------------


def _guide_graph(
    owner: GraphModule, passes: Passes, chains: Mapping[str, "_Chain"], calls: Mapping[str, int]
) -> None:
    """Have calls of a graph made by the guided layers themselves, each given its guides just before it runs."""
    layers = {}
    for key, chain in chains.items():
        handed = next(handed for handed in chain.turns.values() if handed is not None)
        layer, reading = owner.get_submodule(handed.layer), (passes, handed.resize.name, handed.slots)
        layer.register_forward_pre_hook(_Fill(*reading), with_kwargs=True)
        layer.register_forward_hook(Done(*reading))
        layers[calls[key]] = handed.layer
    graph_calls.guide(owner, layers)


class _Fill(Reader):
    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        input, _, *options = args
        return (input, self.guides(input), *options), {}


# --- forwards that call F.interpolate -------------------------------------------------------------------------


class _GuidedCall(NamedTuple):
    """A call that is handed over."""

    layer: str  # the attribute of the module that makes it
    resize: Resize
    slots: tuple[Slot, ...]

    def to(self, owner: nn.Module, passes: Passes, input: Tensor, options: Options) -> Tensor:
        """Enlarge by the guided layer."""
        check_mode(self.resize, options.mode)
        guides = Reader(passes, self.resize.name, self.slots).guides(input)
        output: Tensor = getattr(owner, self.layer)(input, guides, *options)
        passes.done(self.slots, self.resize.name, output)
        return output


class _Chain(NamedTuple):
    """The calls that may come along one chain."""

    repeats: bool
    turns: dict[frozenset[str] | None, _GuidedCall | None]  # by origins of the input; None where it is not guided

    @property
    def names(self) -> str:
        """The names of the guided calls, for messages."""
        return " and ".join(repr(handed.resize.name) for handed in self.turns.values() if handed is not None)


@dataclass(frozen=True, eq=False)
class _Calls:
    """Left in a module whose forward makes calls that are handed over."""

    passes: Passes
    path: str
    chains: Mapping[str, _Chain]
    running: dict[int, list[Origins]] = field(default_factory=dict)  # by thread, of the forwards that run

    @property
    def follows(self) -> bool:
        """Whether turns of a loop must be told apart by their tensors."""
        return any(chain.repeats for chain in self.chains.values())

    @contextmanager
    def followed(self, origins: Origins) -> Iterator[None]:
        """Follow the tensors of a forward while it runs."""
        running = self.running.setdefault(threading.get_ident(), [])
        running.append(origins)
        try:
            yield
        finally:
            running.pop()
            if not running:
                del self.running[threading.get_ident()]

    def innermost(self) -> Origins | None:
        """The origins of its running forward; None where another forward runs within that."""
        running = self.running.get(threading.get_ident())
        return running[-1] if running and self.passes.innermost() == self.path else None


def _forward_runs(owner: nn.Module) -> bool:
    calls: _Calls = owner.__dict__[CALLS]
    return calls.passes.runs(calls.path)


@functools.cache
def _handing_class(plain: Any, follows: bool) -> Any:
    """A class whose instances have the calls of F.interpolate in their forward handed over."""
    forward = _handing(plain)
    if follows:  # which tells tensors from each other, and graphs have none
        forward = torch.compiler.disable(forward, reason=_NOT_COMPILED)
    methods = refusing(plain, _forward_runs)
    return subclass(plain, (_handing_class, plain, follows), **(methods | {"forward": forward}))


def _handing(plain: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a class, whose calls of F.interpolate are handed over."""

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls: _Calls | None = self.__dict__.get(CALLS)
        if calls is None:
            return plain.forward(self, *args, **kwargs)
        calls.passes.begin(calls.path)
        try:
            if not calls.follows:
                with _HandOver(self, calls):
                    return begun(plain.forward, self, *args, **kwargs)
            following = _HandOverInLoops(self, calls, args, kwargs)
            with calls.followed(following.origins), following:
                output = begun(plain.forward, self, *args, **kwargs)
            following.finish()
            return output
        finally:
            calls.passes.end()

    return forward


class _HandOver(TorchFunctionMode):
    def __init__(self, owner: nn.Module, calls: _Calls) -> None:
        super().__init__()
        self.owner, self.calls = owner, calls
        self.keys: list[str] = []  # of the guided calls so far

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.interpolate or self.calls.passes.innermost() != self.calls.path:
            return func(*args, **kwargs)
        traced = torch.compiler.is_dynamo_compiling()
        key = key_traced() if traced else key_here()
        chain = self.calls.chains.get(key)
        if chain is None and broken(key):
            raise HotswapError(
                f"torch.compile split the forward of {self.calls.path or 'the network'!r}, and which of its calls of "
                "F.interpolate is guided is not known there any more; compile it with fullgraph=True, which says "
                "where it was split, or compile only the modules inside it"
            )
        if chain is None and (checkpointed_traced() if traced else checkpointed()):
            self.refuse_alike(key)
        handed = None if chain is None else self.which(key, chain, *args, **kwargs)
        if handed is None:
            return func(*args, **kwargs)
        if not traced and rerun_apart():
            raise _checkpointed(repr(handed.resize.name))
        input, options = _apart(*args, **kwargs)
        return handed.to(self.owner, self.calls.passes, input, options)

    def refuse_alike(self, key: str) -> None:
        """Refuse a call in a checkpointed part that may be a guided one, which came there in another way."""
        for other, chain in self.calls.chains.items():
            if last_of(other) == last_of(key):
                raise _checkpointed(chain.names)

    def which(self, key: str, chain: _Chain, *args: Any, **kwargs: Any) -> _GuidedCall | None:
        """The guided call that this one is."""
        if key in self.keys:
            raise _ambiguous(chain, key)
        self.keys.append(key)
        return chain.turns[None]


class _HandOverInLoops(_HandOver):
    """Tells turns of a loop apart, too."""

    def __init__(self, owner: nn.Module, calls: _Calls, args: Any, kwargs: Any) -> None:
        super().__init__(owner, calls)
        self.origins = Origins(args, kwargs)
        self.turns: dict[str, list[frozenset[str]]] = {}  # by key

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        self.origins.follow(func, args, kwargs or {}, result)
        return result

    def which(self, key: str, chain: _Chain, *args: Any, **kwargs: Any) -> _GuidedCall | None:
        """The guided call that this one is."""
        if not chain.repeats:
            return super().which(key, chain, *args, **kwargs)
        origins, turns = self.origins.of(_apart(*args, **kwargs)[0]), self.turns.setdefault(key, [])
        if origins in turns and chain.turns.get(origins) is not None:
            raise _ambiguous(chain, key)
        turns.append(origins)
        return chain.turns.get(origins)

    def finish(self) -> None:
        """Check that no unknown call came in place of a guided one."""
        for key, turns in self.turns.items():
            chain = self.calls.chains[key]
            missing = any(handed is not None and turn not in turns for turn, handed in chain.turns.items())
            if missing and not chain.turns.keys() >= set(turns):
                raise _ambiguous(chain, key)


def _ambiguous(chain: _Chain, key: str) -> HotswapError:
    return HotswapError(
        f"the code that makes the guided call {chain.names} ({last_of(key)}) makes other calls of F.interpolate at "
        "this size or in this mode than on the example inputs, so it is not clear which of them to guide; "
        "hotswap.revert the network and give example_inputs of this size, or have the code make the call in a "
        "module of its own"
    )


def _checkpointed(names: str) -> HotswapError:
    lies = "lie" if " and " in names else "lies"
    return HotswapError(
        f"target {names} {lies} in a part of its forward that activation checkpointing runs again by itself, where "
        "it would not be guided; checkpoint whole modules, or none"
    )


_NOT_COMPILED = (
    "hotswap tells turns of a loop apart by what they enlarge, which it follows while the code runs; compile the "
    "modules inside it"
)


def _apart(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Options]:
    return input, Options(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class _Enter(Hook):
    calls: _Calls
    name: str  # from the module whose forward is followed

    def __call__(self, module: nn.Module, args: Any) -> None:
        if (origins := self.calls.innermost()) is not None:
            origins.enter()


class _Leave(_Enter):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:  # type: ignore[override]
        if (origins := self.calls.innermost()) is not None:
            origins.leave(self.name, args, output)
