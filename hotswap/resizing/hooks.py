"""Carries guided enlargements out with module hooks, for networks that cannot be traced.

Guides are caught and read as in `hotswap.relay`. An enlargement that is a module is given its guides just before it
runs. A forward that calls `F.interpolate` runs under a mode that hands those calls over to guided layers. It knows
them by the line of code that makes them: a call that only some images, or only training, makes shifts no others.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hotswap import relay, surgery
from hotswap.errors import HotswapError
from hotswap.following import notes_of, with_taps
from hotswap.guide import require_input_only
from hotswap.naming import INPUT
from hotswap.observe import Inputs, Observation
from hotswap.placing import all_paths, deepest_caller
from hotswap.relay import Done, Hook, Reader, Reading, Relay, Slot, slots_of
from hotswap.resizing.checks import check_against, check_mode
from hotswap.resizing.layers import Options
from hotswap.resizing.plan import Resize
from hotswap.resizing.record import CALLS
from hotswap.resizing.sites import Line, Lines, Site, calling_line, find


@dataclass(frozen=True)
class Graft:
    """Guided enlargements made ready for one network: all that is left is to install them."""

    resizes: tuple[Resize, ...]
    root_path: str  # of the module whose call is a pass
    readers: Mapping[Slot, Mapping[str, int]]
    lines: Mapping[str, Line]  # by name of the target, where that is a call of F.interpolate
    others: tuple[str, ...]  # paths of modules inside whose enlargements are their own
    notes: tuple[str, ...] = ()
    drift: float | None = None  # as the plan has it

    @property
    def note(self) -> str:
        """How, for people."""
        where = self.root_path or "the network"
        return f"guides of the enlargements are caught by hooks, within calls of {where}"

    def attach(self, model: nn.Module, root: nn.Module) -> "Steering":
        """Let the guides of a pass reach its enlargements."""
        own = Relay(self.readers)
        relay.attach(own, model, root)
        handed: dict[str, list[Resize]] = {}  # path of the module whose forward makes the calls -> these
        for resize in self.resizes:
            if resize.call is None:
                layer, reading = model.get_submodule(resize.target), (own, resize.name, slots_of(resize))
                layer.register_forward_pre_hook(_Give(*reading), with_kwargs=True)
                layer.register_forward_hook(Done(*reading))
            else:
                handed.setdefault(resize.target, []).append(resize)
        for path, resizes in handed.items():
            owner = model.get_submodule(path)
            by_line = {self.lines[r.name]: _Handed(r.layer_path.rpartition(".")[2], r, slots_of(r)) for r in resizes}
            owner.__dict__[CALLS] = _Calls(own, type(owner), path, by_line)
            owner.__class__ = surgery.subclass(type(owner), forward=_handing(type(owner)))
        for path in self.others:
            model.get_submodule(path).register_forward_pre_hook(_Begin(own, path))
            model.get_submodule(path).register_forward_hook(_End(own, path), always_call=True)
        return Steering(own)


@dataclass(frozen=True)
class Steering:
    """What `Graft.attach` leaves."""

    relay: Relay

    def undo(self, root: nn.Module) -> None:
        """Take it away again."""
        relay.detach(self.relay, root)
        for module in root.modules():
            calls: _Calls | None = module.__dict__.get(CALLS)
            if calls is not None and calls.relay is self.relay:
                del module.__dict__[CALLS]
                module.__class__ = calls.plain_class


def prepare(
    model: nn.Module, resizes: Sequence[Resize], observation: Observation | None, example_inputs: Inputs | None
) -> Graft:
    """Check what is wanted and find the calls and where guides are caught, changing nothing in the network.

    Args:
        model: the network.
        resizes: what to guide.
        observation: one run of the network, if it could be run.
        example_inputs: what it was run on.

    Raises:
        HotswapError: where it cannot be done on this network, with the reason.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for resize in resizes:
        check_against(modules, resize)
    sites = {(site.path, site.call): site for site in find(model, example_inputs).found}
    for resize in resizes:
        site = sites.get((resize.target, resize.call))
        if site is None:
            raise HotswapError(f"target {resize.name!r} is never called by {type(model).__name__}; name one that is")
        check_mode(resize, site.mode)
    resizes, found = with_taps(model, resizes, example_inputs)
    sources = {source for resize in resizes for source in resize.guide if source != INPUT}
    targets = {resize.target for resize in resizes}
    inside = all_paths(modules, *sources, *targets)
    from_input = any(INPUT in resize.guide for resize in resizes)  # known in the network's own forward only
    root_path = "" if from_input or "" in targets else deepest_caller(modules, inside, observation)
    for path in {root_path, *inside}:
        _check_hookable(path, modules[path], calls=any(r.target == path and r.call is not None for r in resizes))
    reads = [Reading(resize.name, resize.target, slots_of(resize)) for resize in resizes]
    lines = {r.name: line for r in resizes if (line := sites[r.target, r.call].line) is not None}
    others = _others(model, resizes, sites.values())
    readers = relay.readers(reads, observation)
    relay.check_slots(modules, readers)
    return Graft(resizes, root_path, readers, lines, others, notes_of(found))


def _others(model: nn.Module, resizes: Iterable[Resize], sites: Iterable[Site]) -> tuple[str, ...]:
    """Modules inside one whose calls are handed over that enlarge something themselves, or run the same code."""
    owners = {resize.target for resize in resizes if resize.call is not None}
    code = {type(model.get_submodule(owner)).forward for owner in owners}
    alike = {path for path, module in model.named_modules() if type(module).forward in code}
    around = tuple(f"{owner}." if owner else "" for owner in owners)
    inside = ({site.path for site in sites} | alike) - owners
    return tuple(sorted(path for path in inside if path.startswith(around)))


def _check_hookable(path: str, module: nn.Module, *, calls: bool) -> None:
    name = repr(path) if path else "the network"
    if isinstance(module, torch.jit.ScriptModule):
        raise HotswapError(f"module {name} is a ScriptModule, which takes no hooks")
    if calls and "forward" in module.__dict__:
        raise HotswapError(
            f"module {name} has had its forward replaced on the instance, so its calls of F.interpolate cannot be "
            "handed over; undo that first"
        )


# --- modules that are enlargements ----------------------------------------------------------------------------


class _Give(Reader):
    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        require_input_only(self.target, args, kwargs)
        input = args[0] if args else next(iter(kwargs.values()))
        return (input, self.guides(input)), {}


# --- forwards that call F.interpolate -------------------------------------------------------------------------


class _Handed(NamedTuple):
    """A call that is handed over."""

    layer: str  # the attribute of the module that makes the call
    resize: Resize
    slots: tuple[Slot, ...]

    def to(self, owner: nn.Module, own: Relay, input: Tensor, options: Options) -> Tensor:
        """Enlarge by the guided layer."""
        check_mode(self.resize, options.mode)
        guides = Reader(own, self.resize.name, self.slots).guides(input)
        output: Tensor = getattr(owner, self.layer)(input, guides, *options)
        own.done(self.slots, self.resize.name, output)
        return output


@dataclass(frozen=True, eq=False)
class _Calls:
    """Left in a module whose forward makes calls that are handed over."""

    relay: Relay
    plain_class: type[nn.Module]
    path: str
    by_line: Mapping[Line, _Handed]

    def at(self, made: Lines) -> _Handed | None:
        """The call that is being made, after those that were."""
        if torch.compiler.is_compiling():  # which cannot look at lines: counted, as evaluation makes them
            made.append(("", 0))
            for handed in self.by_line.values():  # no next(): torch 2.8 does not compile it over a generator
                if handed.resize.call == len(made) - 1:
                    return handed
            return None
        return self.by_line.get(made.next(calling_line()))


def _handing(plain: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a class, whose calls of F.interpolate are handed over."""

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls: _Calls = self.__dict__[CALLS]
        calls.relay.begin(calls.path)
        try:
            with _HandOver(self, calls):
                return plain.forward(self, *args, **kwargs)
        finally:
            calls.relay.end()

    return forward


class _HandOver(TorchFunctionMode):
    def __init__(self, owner: nn.Module, calls: _Calls) -> None:
        super().__init__()
        self.owner, self.calls, self.made = owner, calls, Lines()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.interpolate or self.calls.relay.innermost() != self.calls.path:
            return func(*args, **kwargs)
        handed = self.calls.at(self.made)
        if handed is None:
            return func(*args, **kwargs)
        input, options = _apart(*args, **kwargs)
        return handed.to(self.owner, self.calls.relay, input, options)


def _apart(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Options]:
    return input, Options(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class _Begin(Hook):
    path: str

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.relay.begin(self.path)


class _End(_Begin):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:  # type: ignore[override]
        self.relay.end()
