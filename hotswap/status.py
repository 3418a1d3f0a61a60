"""What is swapped in a network, now."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from hotswap import surgery
from hotswap.plan import Plan


@dataclass(frozen=True)
class Status:
    """The swaps a network carries, with their scales as they are; `plan` is None where there are none."""

    plan: Plan | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"swapped": self.plan is not None, "plan": None if self.plan is None else self.plan.to_dict()}

    def __str__(self) -> str:
        """A table, or a line that says there is nothing."""
        return "nothing is swapped" if self.plan is None else str(self.plan)


def status(model: nn.Module) -> Status:
    """What is swapped in `model`, with which guide and scale; the plan in it can be given to `apply`."""
    return Status(surgery.current_plan(model))
