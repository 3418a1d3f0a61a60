"""Values that rewritten code hands to the modules that it calls, and gets back, beside arguments and outputs."""

from typing import Any

import torch

from hotswap.errors import HotswapError
from hotswap.network.nested import tensors_in

HANDED = "hotswap_handed"  # the keyword
REENTRANT = (
    "reentrant activation checkpointing runs a target apart from its guide, and would lose the guide's gradient; "
    "checkpoint with use_reentrant=False"
)


class Handed:
    """Values that go beside the arguments and the output of one call.

    No tuple or dict, so that whoever casts, moves or copies arguments hands it on as it is.
    """

    def __init__(self, code: int, values: dict[str, Any]) -> None:
        self.code = code  # which of the module's codes runs
        self.values = values
        self.traced: Any = None  # the proxy of this in a trace
        self.recorded: bool | None = None  # whether the call recorded gradients
        self.again = False  # whether it is run once more, recorded now, by reentrant activation checkpointing

    def enter(self) -> None:
        """Note that the call begins, and whether checkpointing runs it again."""
        recorded = torch.is_grad_enabled()
        self.again = recorded and self.recorded is False
        self.recorded = recorded

    def check(self, value: Any) -> None:
        """Refuse a value that would have a gradient, where it goes past the checkpoint that it should go through.

        Raises:
            HotswapError: where it would.
        """
        if self.again and any(x.requires_grad for x in tensors_in(value)):
            raise HotswapError(REENTRANT)


def hand(code: int, **values: Any) -> Handed:
    """Make the `Handed` of a call, in the code of the caller."""
    return Handed(code, values)


def take(handed: Handed, name: str) -> Any:
    """Read a value that was handed in, or given back."""
    if handed.traced is not None:
        return handed.traced.tracer.create_proxy("call_function", take, (handed.traced, name), {})
    value = handed.values[name]
    handed.check(value)
    return value


def give(handed: Handed, name: str, value: Any) -> None:
    """Give a value back, for code after the call."""
    handed.check(value)
    handed.values[name] = value
