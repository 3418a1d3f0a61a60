"""What every converted network is held to."""

from typing import Any

from torch import nn

import hotswap
from benchmarks.coverage.networks import Inputs
from benchmarks.coverage.outputs import run, same

ROUNDING = 1e-5  # relative, float32: what a deep network makes of another order of summation ...
ROUNDING_64 = 1e-9  # ... and, where it makes more of it, float64


class BrokenPromise(Exception):  # noqa: N818 (what a check found)
    """The swapped network does something it must not."""


def check_kept(swapped: nn.Module, keys: list[str], kind: type[nn.Module]) -> None:
    """A converted network has the plain one's keys and class.

    Raises:
        BrokenPromise: it has others.
    """
    if list(swapped.state_dict()) != keys:
        raise BrokenPromise("state_dict has other keys")
    if not isinstance(swapped, kind) or type(swapped).__name__ != kind.__name__:
        raise BrokenPromise(f"class {type(swapped).__name__} instead of {kind.__name__}")


def check_reverted(swapped: nn.Module, kind: type[nn.Module], inputs: Inputs, plain: Any) -> None:
    """Reverted, in place, it is the plain network.

    Raises:
        BrokenPromise: it is not.
    """
    reverted = hotswap.revert(swapped, inplace=True)
    if type(reverted) is not kind or hotswap.status(reverted).plan is not None:
        raise BrokenPromise("revert leaves something swapped")
    if not same(run(reverted, inputs), plain):
        raise BrokenPromise("the reverted network's outputs are not bit-identical")
