"""Runs of one image through many swaps of a network, with what comes before the first swap computed once."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from hotswap.measure.compare import run, swapped_layers
from hotswap.network.dry_run import compiled_in_place, hookable, removed_afterwards
from hotswap.network.names import INPUT
from hotswap.network.nested import tensors_in
from hotswap.surgery import install

_Call = tuple[str, int]  # a module's path, and which of its calls


class Replay:
    """A plain network and several swapped ones that share its weights.

    `plain` runs the plain network and keeps what each of its modules returned; `swapped` runs a swapped one, whose
    modules return that until the first swapped layer is called. Modules that hold a swapped layer or a guide, or that
    were rewritten, run as they are. An output that the network changed in place later is not kept.
    """

    def __init__(self, plain: nn.Module, swapped: Sequence[nn.Module]) -> None:
        self._plain = plain
        self._kept: dict[_Call, Any] = {}
        self._calls: Counter[str] = Counter()
        self._replaying = False
        self._paths = () if compiled_in_place(plain) else _outermost(plain, swapped)

    @contextmanager
    def installed(self, swapped: Sequence[nn.Module]) -> Iterator[None]:
        """Have the modules of all networks return what is kept, while this is open."""
        with ExitStack() as stack:
            for path in self._paths:
                stack.enter_context(_forward(self._plain.get_submodule(path), self._keeping(path)))
                for network in swapped:
                    stack.enter_context(_forward(network.get_submodule(path), self._returning(path)))
            layers = [layer for network in swapped for layer in swapped_layers(network).values()]
            stack.enter_context(removed_afterwards(x.register_forward_pre_hook(self._end) for x in layers))
            stack.callback(self._kept.clear)
            yield

    def plain(self, arguments: tuple[Any, ...]) -> Any:
        """Run the plain network on an image, which `swapped` then goes on with."""
        self._kept.clear()
        self._calls.clear()
        output = run(self._plain, arguments)
        for call, (_, versions) in list(self._kept.items()):
            if any(x._version != version for x, version in versions):
                del self._kept[call]
        return output

    def swapped(self, network: nn.Module, arguments: tuple[Any, ...], *, whole: bool = False) -> Any:
        """Run a swapped network on the same image; `whole` computes everything."""
        self._calls.clear()
        self._replaying = not whole
        try:
            return run(network, arguments)
        finally:
            self._replaying = False

    def forget(self) -> None:
        """Compute everything from now on."""
        self._paths = ()
        self._kept.clear()

    def _end(self, *_: Any) -> None:
        self._replaying = False

    def _keeping(self, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
            def keep(*arguments: Any, **keywords: Any) -> Any:
                call = path, self._calls[path]
                self._calls[path] += 1
                output = forward(*arguments, **keywords)
                versions = [(x, x._version) for x in tensors_in(output)]
                if versions and self._paths:
                    self._kept[call] = copy.copy(output) if isinstance(output, list | dict) else output, versions
                return output

            return keep

        return wrapped

    def _returning(self, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
            def replay(*arguments: Any, **keywords: Any) -> Any:
                call = path, self._calls[path]
                self._calls[path] += 1
                if self._replaying and call in self._kept:
                    output, _ = self._kept[call]
                    return copy.copy(output) if isinstance(output, list | dict) else output
                return forward(*arguments, **keywords)

            return replay

        return wrapped


@contextmanager
def _forward(module: nn.Module, wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    own = vars(module).get("forward")
    vars(module)["forward"] = wrapped(module.forward)
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def _outermost(plain: nn.Module, swapped: Sequence[nn.Module]) -> tuple[str, ...]:
    """Modules that can be replayed in every swapped network, without those inside one of them."""
    held = set[str]()
    for network in swapped:
        plan = install.current_plan(network)
        for entry in () if plan is None else plan.entries:
            paths = [entry.layer_path, *(path for path in entry.guide if path != INPUT)]
            paths += [tap[0] for tap in entry.taps if tap is not None]
            held.update(above for path in paths for above in _above(path))
    taken: dict[str, None] = {}
    others = [dict(network.named_modules()) for network in swapped]
    for path, module in plain.named_modules():
        if any(above in taken for above in _above(path)) or path in held or not hookable(module):
            continue
        if all(type(modules.get(path)) is type(module) for modules in others):
            taken[path] = None
    return tuple(taken)


def _above(path: str) -> Iterator[str]:
    """A path and those of all modules that hold it, the network's own too."""
    yield ""
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])
