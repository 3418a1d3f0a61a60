"""A published network, and ours that holds its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hotswap.files.weight_names import listed
from hotswap.zoo import providers
from hotswap.zoo.image_stats import ImageStats
from hotswap.zoo.names import Spec

Shapes = Mapping[str, tuple[int, ...]]
BY_WEIGHTS = "the names and shapes of its weights"


@dataclass(frozen=True)
class Network:
    """A published network, and ours that holds its weights."""

    name: str  # in the published code
    told_by: str
    module: str
    factory: str
    options: Mapping[str, Any]  # of the factory
    command: str  # that evaluates it
    images: ImageStats
    swapped: str | None = None  # in front of the names of swapped convolutions; None where there are none
    names: Mapping[str, str] = field(default_factory=dict)  # ours, by those of the file, where these are not known
    notes: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """For `providers.build`."""
        return str(Spec(self.module, self.factory, self.options))

    def build(self) -> nn.Module:
        """Our network, with random weights.

        Raises:
            HotswapError: where an option does not fit.
        """
        return providers.build(self.architecture, trusted=True)

    def shapes(self) -> Shapes:
        """The names and shapes of our network's weights.

        Raises:
            HotswapError: as `build`.
        """
        with torch.device("meta"):
            return {name: tuple(x.shape) for name, x in self.build().state_dict().items()}


def our_name(published: str) -> str:
    """The name that we give to a published weight."""
    return re.sub(r"^branch_joint\.", "joint.", published)


def difference(found: Shapes, expected: Shapes) -> str:
    """How weights differ from those expected, in part of a line; empty where they do not."""
    parts = {
        "not known": [name for name in found if name not in expected],
        "missing": [name for name in expected if name not in found],
        "of another shape": [
            f"{name} is {list(shape)} and must be {list(expected[name])}"
            for name, shape in found.items()
            if name in expected and expected[name] != shape
        ],
    }
    return ", ".join(f"{len(names)} {what} ({listed(names)})" for what, names in parts.items() if names)
