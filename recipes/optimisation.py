"""Optimisers with one learning rate for each group of parameters, and schedules."""

import math

import torch
from torch import nn

from hotswap.network.dry_run import Inputs
from hotswap.rates import parameter_groups
from recipes.config import Optimiser, Schedule

_KINDS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
_WEIGHT_DECAY = {"adamw": 0.01, "adam": 0.0, "sgd": 0.0}
_MOMENTUM = 0.9  # of sgd
_DROP, _POWER = 0.1, 0.9  # of schedules step and poly


def optimiser(model: nn.Module, settings: Optimiser, example: Inputs) -> torch.optim.Optimizer:
    """An optimiser of all parameters that require a gradient, one group per factor.

    Args:
        model: the network.
        settings: the recipe's.
        example: what the network takes, for `parameter_groups`.

    Raises:
        HotswapError: where a part is not there, or nothing is left to be trained.
    """
    options = (
        {} if settings.name != "sgd" else {"momentum": _MOMENTUM if settings.momentum is None else settings.momentum}
    )
    decay = settings.weight_decay
    built: torch.optim.Optimizer = _KINDS[settings.name](
        parameter_groups(model, settings.lr, settings.factors, example),
        weight_decay=_WEIGHT_DECAY[settings.name] if decay is None else decay,
        **options,
    )
    return built


def rate(settings: Schedule, step: int, steps: int, unit: int) -> float:
    """The factor on all learning rates at one of `steps` steps, counted from 0.

    Args:
        settings: the recipe's schedule, whose times are in units of `unit` steps.
        step: which one.
        steps: how many there are in all.
        unit: 1, or the steps of an epoch.
    """
    warmup = settings.warmup * unit
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    gone = (step - warmup) / max(1.0, steps - warmup)
    match settings.name:
        case "constant":
            return 1.0
        case "step":
            drops = sum(step >= at * unit for at in settings.at or ())
            return float((settings.factor or _DROP) ** drops)
        case "cosine":
            return (1 + math.cos(math.pi * gone)) / 2
        case "poly":
            return float((1 - gone) ** (settings.power or _POWER))
