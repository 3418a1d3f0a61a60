"""The swaps that a network carries now."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from hotswap.surgery import install
from hotswap.targets.entries import Swap
from hotswap.targets.kernels import inert_warnings
from hotswap.targets.plan import Plan


@dataclass(frozen=True)
class Status:
    """The swaps a network carries, with their scales as they are; `plan` is None where there are none.

    Deviations and the drift are those that `calibrate` measured.
    """

    plan: Plan | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look at, a line each."""
        entries = () if self.plan is None else self.plan.entries
        closed = [entry.name for entry in entries if isinstance(entry, Swap) and entry.closed]
        if self.plan is not None and self.plan.output is not None and self.plan.output.closed:
            closed.append(self.plan.output.name)
        known = {entry.name: entry.deviation for entry in entries if entry.deviation is not None}
        return inert_warnings(known, closed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plan = None if self.plan is None else self.plan.to_dict()
        return {"swapped": plan is not None, "plan": plan, "warnings": list(self.warnings)}

    def __str__(self) -> str:
        """A table and the warnings, or a line that says there is nothing."""
        text = "nothing is swapped" if self.plan is None else str(self.plan)
        return "\n".join([text, *(f"warning: {warning}" for warning in self.warnings)])


def status(model: nn.Module) -> Status:
    """What is swapped in `model`, with which guide and scale; the plan in it can be given to `apply`.

    Nothing is run: see `verify` for what the swaps do to data.
    """
    return Status(install.current_plan(model))
