"""Whether a rewritten network still has the modules that it was rewritten for."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from hotswap.errors import HotswapError
from hotswap.network.names import joined
from hotswap.surgery.containers import is_steered
from hotswap.surgery.scope import module_at
from hotswap.targets.guided_layer import OUTPUT_LAYER

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # whose modules are called because they are there


@dataclass(frozen=True)
class Parts:
    """Modules that rewritten code relies on, by their paths in the module that has it."""

    steered: Collection[str]  # targets, and modules that hand guides on
    lists: Mapping[str, tuple[str, ...]]  # traced through, and what they held
    uncalled: Collection[str]  # modules whose code runs, while they are not called

    def are_in(self, root: nn.Module) -> bool:
        """Whether they are all there, each at its path."""
        steered = all((there := module_at(root, path)) is not None and is_steered(there) for path in self.steered)
        return steered and not any(self.changed(root))

    def changed(self, root: nn.Module) -> Iterator[str]:
        """Lists that hold other modules now, as messages name them."""
        for path, names in self.lists.items():
            module = module_at(root, path)
            if module is not None and isinstance(module, _LISTS) and _children(module) != names:
                yield f"the modules of {path!r}" if path else f"the modules of this {type(root).__name__}"

    def check_hooks(self, root: nn.Module) -> None:
        """Refuse hooks that would not be called.

        Raises:
            HotswapError: where there are any.
        """
        for path in self.uncalled:
            module = module_at(root, path)
            if module is not None and any(map(_of_others, hooks_of(module))):
                raise HotswapError(
                    f"module {path!r} has hooks, which the rewritten forward does not call, as its code is a part of "
                    'that; remove them, or hotswap.revert the network and convert it with method="hooks"'
                )


def lists_in(root: nn.Module, opened: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The names in each list whose modules the traced code calls one by one; `opened`: modules traced through."""
    waiting = [(path, root.get_submodule(path)) for path in ("", *opened)]
    held: dict[str, tuple[str, ...]] = {}
    while waiting:
        path, module = waiting.pop()
        if isinstance(module, _LISTS):
            held[path] = _children(module)
        never_called = ((name, x) for name, x in module.named_children() if type(x).forward is nn.Module.forward)
        waiting += [(joined(path, name), x) for name, x in never_called]
    return held


def _children(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name in module._modules if name != OUTPUT_LAYER)


def hooks_of(module: nn.Module) -> Iterator[object]:
    """The hooks on a module's forward and backward."""
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        yield from getattr(module, name).values()


def _of_others(hook: object) -> bool:
    """Whether a hook is none of this package, which has some while it looks at a network."""
    return not str(getattr(hook, "__module__", "")).startswith("hotswap.")
