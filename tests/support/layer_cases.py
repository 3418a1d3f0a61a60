"""Every layer beside its counterpart in torch.nn, with what it is called with."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from oracle import assert_close
from torch import nn

from pac_ops import PacConv2d, PacConvTranspose2d, PacPool2d

NARROW = [torch.float16, torch.bfloat16]

ASYMMETRIC = {"kernel_type": "inv_0.2_0.7_asym", "smooth_kernel_type": "full_3", "normalize_kernel": True}

INVERSE = {"kernel_type": "inv_0.2_0.7"}


@dataclass(frozen=True)
class Case:
    """A layer, its counterpart in torch.nn, and what it is called with."""

    make: Callable[..., nn.Module]  # takes device and dtype
    stock: Callable[..., nn.Module]  # makes the same output size, with the same numbers of channels
    masked: bool = False
    guide_channels: int = 3

    def layer(self, **where):
        torch.manual_seed(1)
        return self.make(**where)

    def arguments(self, batch=2, height=9, width=8, dtype=torch.float32, channels=4):
        """input, guide, no kernel, and a mask or None: what the layer takes, in its order."""
        generator = torch.Generator().manual_seed(batch + height)
        plain = self.stock()
        size = (height, width)
        if isinstance(plain, nn.ConvTranspose2d):
            size = plain(torch.zeros(1, plain.in_channels, height, width)).shape[2:]
        x = torch.randn(batch, channels, height, width, generator=generator)
        guide = torch.randn(batch, self.guide_channels, *size, generator=generator) / 2
        mask = torch.rand(batch, 1, height, width, generator=generator) > 0.2
        return x.to(dtype), guide.to(dtype), None, mask if self.masked else None


CASES = {
    "conv": Case(lambda **w: PacConv2d(4, 6, 3, padding=1, **w), lambda **w: nn.Conv2d(4, 6, 3, padding=1, **w)),
    "conv, depthwise": Case(
        lambda **w: PacConv2d(4, 8, (3, 5), (2, 1), (1, 2), groups=4, **w),
        lambda **w: nn.Conv2d(4, 8, (3, 5), (2, 1), (1, 2), groups=4, **w),
    ),
    "conv, shared filters": Case(
        lambda **w: PacConv2d(4, 4, 3, padding=1, shared_filters=True, **w),
        lambda **w: nn.Conv2d(4, 4, 3, padding=1, groups=4, **w),
    ),
    "conv, reflect": Case(
        lambda **w: PacConv2d(4, 6, 3, padding="same", padding_mode="reflect", **w),
        lambda **w: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", **w),
    ),
    "conv, asymmetric": Case(
        lambda **w: PacConv2d(4, 6, 3, padding=1, **ASYMMETRIC, **w), lambda **w: nn.Conv2d(4, 6, 3, padding=1, **w)
    ),
    "conv, mask": Case(
        lambda **w: PacConv2d(4, 6, 3, padding=2, dilation=2, **w),
        lambda **w: nn.Conv2d(4, 6, 3, padding=2, dilation=2, **w),
        masked=True,
    ),
    "transpose": Case(
        lambda **w: PacConvTranspose2d(4, 6, 5, 2, 2, 1, **w), lambda **w: nn.ConvTranspose2d(4, 6, 5, 2, 2, 1, **w)
    ),
    "transpose, groups": Case(
        lambda **w: PacConvTranspose2d(4, 6, 3, 2, groups=2, **w),
        lambda **w: nn.ConvTranspose2d(4, 6, 3, 2, groups=2, **w),
    ),
    "transpose, inverse": Case(
        lambda **w: PacConvTranspose2d(4, 6, 3, 2, 1, 1, **INVERSE, **w),
        lambda **w: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, **w),
    ),
    "transpose, mask": Case(
        lambda **w: PacConvTranspose2d(4, 6, 5, 2, 2, 1, normalize_kernel=True, **w),
        lambda **w: nn.ConvTranspose2d(4, 6, 5, 2, 2, 1, **w),
        masked=True,
    ),
    "pool": Case(lambda **w: PacPool2d(3, 2, 1, **w), lambda **w: nn.AvgPool2d(3, 2, 1)),
    "pool, channel-wise": Case(
        lambda **w: PacPool2d(3, 1, 1, channel_wise=True, channels=4, **INVERSE, **w),
        lambda **w: nn.AvgPool2d(3, 1, 1),
        guide_channels=4,
    ),
    "pool, ceil": Case(
        lambda **w: PacPool2d(3, 2, 1, ceil_mode=True, normalize_kernel=True, **w),
        lambda **w: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    ),
    "pool, mask": Case(lambda **w: PacPool2d(3, None, **w), lambda **w: nn.AvgPool2d(3), masked=True),
}


def layers_but(*names):
    """All layers but these, which repeat what others meet: they are run with `-m slow`."""
    assert CASES.keys() >= set(names)
    marked = [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if name in names else []) for name, case in CASES.items()
    ]
    return pytest.mark.parametrize("case", marked)


LEARNING = {name: case for name, case in CASES.items() if list(case.make().parameters())}

every_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

every_learning_layer = pytest.mark.parametrize("case", LEARNING.values(), ids=LEARNING)


def output(result):
    """A layer's output, without the output mask."""
    return result[0] if isinstance(result, tuple) else result


def changed(arguments, change):
    """The arguments, each tensor changed."""
    return tuple(None if x is None else change(x) for x in arguments)


def floating(change):
    """A change of all but masks."""
    return lambda x: change(x) if x.is_floating_point() else x


def everything(layer, arguments, run=None, wanted=("input", "guide")):
    """The output of a layer (or of `run` with its parameters), and the gradient of everything that has one."""
    named = dict(zip(("input", "guide", "kernel", "mask"), arguments, strict=True))
    named |= {name: named[name].detach().requires_grad_() for name in wanted}
    out = output((layer if run is None else run)(*named.values()))
    leaves = {name: named[name] for name in wanted} | dict(layer.named_parameters())
    # Quarters, which every dtype has exactly.
    incoming = torch.randint(-4, 5, out.shape, generator=torch.Generator().manual_seed(0)) / 4
    gradients = torch.autograd.grad(out, tuple(leaves.values()), incoming.to(out.dtype))
    return {"output": out.detach()} | dict(zip(leaves, gradients, strict=True))


def assert_all_close(actual, expected, held_to=torch.float32):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value.double(), held_to, name, floor=1e-6)
