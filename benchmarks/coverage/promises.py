"""What every converted network is held to."""

from torch import nn

import hotswap
from benchmarks.coverage.networks import Inputs
from benchmarks.coverage.outputs import run, same
from benchmarks.coverage.state import State

ROUNDING = 1e-5  # relative, float32: what a deep network makes of another order of summation ...
ROUNDING_64 = 1e-9  # ... and, where it makes more of it, float64


class BrokenPromise(Exception):  # noqa: N818 (what a check found)
    """The swapped network does something it must not."""


class Plain:
    """What a network was before it was converted.

    Args:
        model: it, not converted yet.
        inputs: what it is fed.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.inputs = inputs
        self.output = run(model, inputs)
        self._keys, self._kind = list(model.state_dict()), type(model)
        self._model, self._state = model, State(model)

    def check_kept(self, swapped: nn.Module) -> None:
        """Converted, it has the same keys, class, modes, parameters, buffers and hooks, and its original has too.

        Raises:
            BrokenPromise: it has others.
        """
        for network in {id(x): x for x in (self._model, swapped)}.values():
            if changed := self._state.differences(network, copied=network is not self._model):
                raise BrokenPromise(f"convert changed {len(changed)} things of the network: {changed[0]}")
        if list(swapped.state_dict()) != self._keys:
            raise BrokenPromise("state_dict has other keys")
        if not isinstance(swapped, self._kind) or type(swapped).__name__ != self._kind.__name__:
            raise BrokenPromise(f"class {type(swapped).__name__} instead of {self._kind.__name__}")

    def check_reverted(self, swapped: nn.Module) -> None:
        """Reverted, in place, it is what it was.

        Raises:
            BrokenPromise: it is not.
        """
        reverted = hotswap.revert(swapped, inplace=True)
        if type(reverted) is not self._kind or hotswap.status(reverted).plan is not None:
            raise BrokenPromise("revert leaves something swapped")
        if not same(run(reverted, self.inputs), self.output):
            raise BrokenPromise("the reverted network's outputs are not bit-identical")
