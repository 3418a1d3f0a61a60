"""Arguments that a network can be run on."""

from typing import Any

import torch
from torch import Tensor, nn

from hotswap.network.dry_run import Inputs, as_arguments, default_inputs, device_of

_HUGE = 1e6  # no image has such values


def with_numbers(model: nn.Module, inputs: Inputs | None) -> tuple[Any, ...]:
    """Arguments on the network's device, by default an image of its usual size; a blank one gets random values."""
    device = device_of(model)
    generator = torch.Generator().manual_seed(0)

    def filled(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        image = x.dim() == 4 and x.is_floating_point()
        if x.is_meta or (image and _is_blank(x)):
            noise = torch.rand(x.shape, generator=generator)
            return noise.to(device, x.dtype)
        return x.detach().to(device)

    return tuple(filled(x) for x in (default_inputs(model) if inputs is None else as_arguments(inputs)))


def _is_blank(image: Tensor) -> bool:
    """Whether an image is of one value, or uninitialised memory."""
    return not bool((image.abs() < _HUGE).all()) or bool((image == image.flatten()[:1]).all())
