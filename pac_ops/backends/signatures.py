"""Types in the signatures of all backends."""

from torch import Tensor

# For a convolution's input, kernel and weight: which gradients are needed, and the gradients, None for the others.
Needs = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
