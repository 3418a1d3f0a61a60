"""Puts the refinement of a network's scores behind it: a hook on the network, and a layer under a private name."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from hotswap.errors import HotswapError
from hotswap.network.nested import at, replaced
from hotswap.surgery import install
from hotswap.targets.output import NAME


def refine(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The forward hook: the output with its scores refined along the network's first argument.

    Raises:
        HotswapError: where the output holds no scores at their place.
    """
    layer: Any = network._modules[NAME]
    where = layer.entry_where
    try:
        scores = at(output, where)
    except KeyError:
        raise HotswapError(
            f"the network gave scores as output{where} when it was converted, and now a {type(output).__name__} "
            "without them; hotswap.revert it, or call it as then"
        ) from None
    image = args[0] if args else next(iter(kwargs.values()))
    return replaced(output, where, layer(scores, image))


@dataclass(frozen=True)
class Steering:
    """The hook of one conversion."""

    def lost(self, root: nn.Module) -> list[str]:
        """What is gone."""
        there = NAME in root._modules and refine in root._forward_hooks.values()
        return [] if there else ["the refinement of the output"]

    def undo(self, root: nn.Module) -> None:
        """Take the hook away."""
        for key in [key for key, hook in root._forward_hooks.items() if hook is refine]:
            del root._forward_hooks[key]
            root._forward_hooks_with_kwargs.pop(key, None)


@dataclass(frozen=True)
class Graft(install.Graft):
    """A plan of nothing but the refinement of the output."""

    @property
    def note(self) -> str:
        """Where scores are refined, for people."""
        assert self.plan.output is not None  # noqa: S101 (for the type checker)
        return f"{self.plan.output.name} is refined behind the network, by a hook"

    def attach(self, model: nn.Module, root: nn.Module) -> Steering:
        """Register the hook."""
        root.register_forward_hook(refine, with_kwargs=True)
        return Steering()
