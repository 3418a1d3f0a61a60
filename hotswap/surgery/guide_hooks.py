"""The module hooks that catch guides and give them to the layers they steer."""

import inspect
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.errors import HotswapError, replaced
from hotswap.network.names import INPUT
from hotswap.surgery.passes import Passes
from hotswap.surgery.scope import module_at
from hotswap.surgery.slots import Slot
from hotswap.targets.forward_ops import require_input_only, require_untraced


@dataclass(frozen=True, eq=False)
class Hook:
    """A hook that belongs to one conversion."""

    passes: Passes


@dataclass(frozen=True, eq=False)
class _Open(Hook):
    first: str | None  # name of the first argument of the module's forward

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        check(self.passes, module)
        self.passes.open()
        slot = Slot(INPUT, None)
        if slot not in self.passes.readers:
            return
        if not args and self.first not in kwargs:
            has_none = f"{type(module).__name__} takes none" if self.first is None else "this call has none"
            raise HotswapError(f"guide {INPUT!r} is the network's first argument, and {has_none}")
        self.passes.catch(slot, args[0] if args else kwargs[self.first])


class _Close(Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.passes.close()


@dataclass(frozen=True, eq=False)
class _Catch(Hook):
    slot: Slot
    root: nn.Module  # whose call is a pass

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.passes.enter(self.root)
        if self.slot.tap is None:
            self.passes.catch(self.slot, output)
        else:
            self.passes.expect(self.slot, self.slot.tap[1])


class _CatchActivation(_Catch):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.passes.pass_activation(self.slot, output)


@dataclass(frozen=True, eq=False)
class Reader(Hook):
    """A hook of a target, which reads the target's guides."""

    target: str
    slots: tuple[Slot, ...]

    def guides(self, like: Tensor) -> tuple[Tensor, ...]:
        """The guides of the target, which is about to run on `like`."""
        require_untraced(self.target, like)
        return tuple(self.passes.read(slot, self.target, like) for slot in self.slots)


class _Give(Reader):
    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        require_input_only(self.target, args, kwargs)
        input = args[0] if args else next(iter(kwargs.values()))
        return (input,), {"guides": self.guides(input)}  # so that hooks see the arguments of the plain layer


class Done(Reader):
    """Let go of the guides of a target that has run."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """See torch."""
        self.passes.done(self.slots, self.target, output)


def check(passes: Passes, root: nn.Module) -> None:
    """Check that no module that has hooks was replaced since: it is called before each pass.

    Raises:
        HotswapError: where one was, with its name.
    """
    if torch.compiler.is_compiling() or (passes.hooked and all(module_at(root, p) is m() for p, m in passes.hooked)):
        return
    if missing := lost(passes, root):
        raise HotswapError(replaced(missing))
    hooked = ((path, module) for path, module in root.named_modules() if any(_hooks(module, passes)))
    passes.hooked = [(path, weakref.ref(module)) for path, module in hooked]


def lost(passes: Passes, root: nn.Module) -> list[str]:
    """Targets and guides whose modules have lost their hooks, as they were replaced."""
    hooks = [hook for module in root.modules() for hook in _hooks(module, passes)]
    given = {hook.target for hook in hooks if isinstance(hook, _Give)}
    caught = {hook.slot for hook in hooks if type(hook) is _Catch}
    after = {hook.slot for hook in hooks if isinstance(hook, _CatchActivation)}
    targets = [f"target {name!r}" for name in passes.layers if name not in given]
    slots = [slot for slot in passes.readers if slot.source != INPUT]
    guides = [f"guide {slot.source!r}" for slot in slots if slot not in caught]
    taps = [f"activation {slot.tap[0]!r}" for slot in slots if slot.tap is not None and slot not in after]
    return [*targets, *dict.fromkeys(guides), *dict.fromkeys(taps)]


def attach(passes: Passes, model: nn.Module, root: nn.Module) -> None:
    """Catch the guides of a network; a call of `root` is a pass."""
    first = next(iter(inspect.signature(root.forward).parameters), None)
    root.register_forward_pre_hook(_Open(passes, first), prepend=True, with_kwargs=True)
    for slot in passes.readers:
        if slot.source == INPUT:
            continue
        model.get_submodule(slot.source).register_forward_hook(_Catch(passes, slot, root))
        if slot.tap is not None:
            model.get_submodule(slot.tap[0]).register_forward_hook(_CatchActivation(passes, slot, root))
    root.register_forward_hook(_Close(passes), always_call=True)


def give(passes: Passes, target: str, slots: tuple[Slot, ...], layer: nn.Module) -> None:
    """Give a layer its guides just before it runs."""
    passes.layers.append(target)
    layer.register_forward_pre_hook(_Give(passes, target, slots), with_kwargs=True)
    layer.register_forward_hook(Done(passes, target, slots))


def detach(passes: Passes, root: nn.Module) -> None:
    """Take all hooks of a conversion away, also of modules that were copied and put back."""
    for module in root.modules():
        for kind in (module._forward_pre_hooks, module._forward_hooks):
            hooks: dict[int, Any] = kind
            keys = [k for k, x in hooks.items() if isinstance(x, Hook) and x.passes.conversion == passes.conversion]
            for key in keys:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)


def _hooks(module: nn.Module, passes: Passes) -> Iterator[Hook]:
    kinds: tuple[Mapping[int, Any], ...] = (module._forward_pre_hooks, module._forward_hooks)
    return (hook for kind in kinds for hook in kind.values() if isinstance(hook, Hook) and hook.passes is passes)
