"""Calls as the published code takes them and ours do not: each is answered by the line to write instead."""

from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

NATIVE_IMPL = "leave it out, or ask for a backend with pac_ops.use_backend(name): there are no k*k copies to choose"
INPUT_2D = "write input="
INPUT_FOR_KERNEL = "write guide="

FILLERS = {
    "pool": "PacPool2d pools; to start a convolution so, copy torch.eye(channels)[:, :, None, None] to its weight",
    "crf": "PacCRF starts its filters itself, with PacCRF.add_pairwise_kernel(spatial_filter=...)",
}


def answers(**instead: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function refuse some keywords, of the published code's, with what to write in place of each.

    Raises:
        TypeError: at a call with one of them.
    """
    known = instead.keys()

    def around(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__qualname__.removesuffix(".__init__").removesuffix(".forward")

        @wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> R:
            if named and not known.isdisjoint(named):
                keyword = next(iter(known & named.keys()))
                raise TypeError(f"{name} has no argument {keyword!r}: {instead[keyword]}")
            return function(*arguments, **named)

        return call

    return around


def filler_instead(filler: str) -> str:
    """What to write in place of one of the published code's fillers, for the end of an error; nothing of others."""
    text = next((text for name, text in FILLERS.items() if str(filler).startswith(name)), "")
    return text and f": {text}"


def nd2col(*_: object, **__: object) -> NoReturn:
    """Not here: see the error.

    Raises:
        NotImplementedError: at every call.
    """
    raise NotImplementedError("pac_ops has no nd2col, as no taps are copied: write torch.nn.functional.unfold")
