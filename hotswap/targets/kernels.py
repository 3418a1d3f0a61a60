"""The adapting kernel K of a swap."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hotswap.errors import HotswapError
from pac_ops import adapting
from pac_ops.adapting import KernelType

DEFAULT_KERNEL = "gaussian"
INERT_DEVIATION = 1e-5  # below it a swap computes a convolution, and so does its gradient


def parse(name: str) -> KernelType:
    """Parse the name of a kernel function.

    Raises:
        HotswapError: where pac_ops has none of this name, or it has numbers of its own to learn, or no scale.
    """
    try:
        function = adapting.kernel_type(name)
    except (ValueError, TypeError, AttributeError) as error:  # the latter two where it is no string
        raise HotswapError(
            f'kernel must be "gaussian" or "inv_{{alpha}}_{{lambda}}[_asym]_fixed", got {name!r}'
        ) from error
    if function.inverse and not function.fixed:
        raise HotswapError(
            f"kernel {name!r} learns its alpha and lambda, for which a swapped convolution has no room; "
            f"use {name + '_fixed'!r}, or learn_scale=True"
        )
    if not _at_zero(function) > 0:
        raise HotswapError(f"kernel {name!r} must be greater than 0 at distance 0, and is {_at_zero(function):g}")
    return function


def adapting_kernel(distance: Tensor, function: KernelType) -> Tensor:
    """K of scaled squared distances, divided by its value at 0: a flat guide leaves a convolution as it is."""
    kernel = adapting.kernel_of(distance, function, None, None)
    return kernel / _at_zero(function) if function.inverse else kernel


def deviation(distance: Tensor, function: KernelType) -> Tensor:
    """1 - K in float64, also where K itself would round to 1."""
    distance = distance.double()
    return 1 - adapting_kernel(distance, function) if function.inverse else -torch.expm1(-0.5 * distance)


def inert_warnings(deviations: Mapping[str, float], closed: Sequence[str] = ()) -> tuple[str, ...]:
    """A line where some of the targets, of these deviations by path, are inert, and one on those of closed gates."""
    inert = [path for path, value in deviations.items() if abs(value) < INERT_DEVIATION]
    texts = []
    if inert:
        texts.append(
            f"{len(inert)} of {len(deviations)} swaps are inert (deviation below {INERT_DEVIATION:g}): "
            f"{', '.join(inert)}; fine-tuning will not notice them. Calibrate the guide scale (hotswap.calibrate)"
        )
    if waiting := [path for path in closed if path not in inert]:
        texts.append(
            f"{len(waiting)} swaps are inert (a = 0): {', '.join(waiting)}; they are the plain layers to the last "
            "bit, until fine-tuning opens their gates"
        )
    return tuple(texts)


def _at_zero(function: KernelType) -> float:
    return function.alpha + 1e-4 ** (function.lambda_ / 2) if function.inverse else 1.0
