"""Code in another file that networks in test_which_call.py resize with."""

import functools

import torch.nn.functional as F


def to_size(x, like, **options):
    """Resize only where sizes differ."""
    if x.shape[2:] != like.shape[2:]:
        x = F.interpolate(x, size=tuple(like.shape[2:]), mode="bilinear", **options)
    return x


def through(x, like, **options):
    """A helper that calls another."""
    return to_size(x, like, **options)


def doubled(function):
    """A decorator whose wrapper is on the way."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def convolved(x, weight, bias, padding=1):
    return F.conv2d(x, weight, bias, padding=padding)
