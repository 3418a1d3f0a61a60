"""What a target becomes: a subclass of its own class whose forward is pixel-adaptive."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

import pac_ops
from hotswap.errors import HotswapError
from pac_ops.layers import pad_as, window_of


class SwappedConv2d(nn.Conv2d):
    """A convolution steered by a guide: `forward(input, distance)`, weights and names unchanged.

    `distance` is ||f_i - f_j||^2 of the unscaled guide, [B, 1, kh, kw, Ho, Wo]; the adapting kernel is
    K = exp(-s^2/2 ||f_i - f_j||^2) with this layer's scale s, so targets of different scale can share distances.
    """

    guide_name: str
    guide_log_scale: nn.Parameter | None  # log s where the scale is learned
    _guide_scale: float  # s where it is not

    @property
    def guide_scale(self) -> float:
        """The scale s of the guide, now."""
        log_scale = self.guide_log_scale
        return self._guide_scale if log_scale is None else log_scale.exp().item()

    @guide_scale.setter
    def guide_scale(self, scale: float) -> None:
        if self.guide_log_scale is None:
            self._guide_scale = scale
        else:
            with torch.no_grad():
                self.guide_log_scale.fill_(scale).log_()

    def adapting_kernel(self, distance: Tensor) -> Tensor:
        """K for these distances, in their shape and dtype."""
        if self.guide_log_scale is None:
            return torch.exp(distance * (-0.5 * self._guide_scale**2))
        return torch.exp(distance * (-0.5 * torch.exp(2 * self.guide_log_scale.to(distance.dtype))))

    def deviation(self, distance: Tensor) -> Tensor:
        """1 - K in float64, where K itself would round to 1 in float32."""
        return -torch.expm1(distance.double() * (-0.5 * self.guide_scale**2))

    def forward(self, input: Tensor, distance: Tensor | None = None) -> Tensor:
        """Pixel-adaptive convolution of the input; see the class.

        Raises:
            HotswapError: where it is called without distances, that is, not by the rewritten forward.
        """
        if distance is None:
            raise HotswapError(
                f"the convolution swapped for guide {self.guide_name!r} was called without its guide: something "
                "other than the forward that hotswap rewrote called it; call the network itself, or hotswap.revert it"
            )
        window = window_of(self)
        padded, padding = pad_as(self.padding_mode, input, window.padding)
        return pac_ops.pacconv2d(
            padded,
            self.adapting_kernel(distance),
            self.weight,
            self.bias,
            window.stride,
            padding,
            window.dilation,
            self.groups,
        )

    def extra_repr(self) -> str:
        """What print(model) shows."""
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        scale = f"guide_scale={self.guide_scale:.4g}" + ("" if self.guide_log_scale is None else " (learned)")
        return f"{plain}, guide={self.guide_name}, {scale}"


_ATTRIBUTES = ("guide_name", "_guide_scale")


@functools.cache
def _swapped_class(plain: Any) -> Any:  # from and to a type[nn.Conv2d], which mypy does not take for hashable
    if plain is nn.Conv2d:
        return SwappedConv2d
    # SwappedConv2d comes first, so that its forward wins; the plain class stays a base, so isinstance holds.
    return type(f"Swapped{plain.__name__}", (SwappedConv2d, plain), {})


def swap_in(conv: nn.Conv2d, guide_name: str, guide_scale: float, *, learn_scale: bool) -> None:
    """Make a convolution pixel-adaptive, in place. Undone by `swap_out`."""
    plain: Any = type(conv)
    conv.__class__ = _swapped_class(plain)
    assert isinstance(conv, SwappedConv2d)  # noqa: S101 (for the type checker)
    conv.guide_name = guide_name
    conv._guide_scale = guide_scale
    log_scale: nn.Parameter | None = None
    if learn_scale:
        log_scale = nn.Parameter(torch.tensor(guide_scale, device=conv.weight.device).log())
    conv.register_parameter("guide_log_scale", log_scale)


def swap_out(conv: SwappedConv2d) -> None:
    """Make a swapped convolution plain again, in place, with its current weights."""
    for name in _ATTRIBUTES:
        delattr(conv, name)
    del conv._parameters["guide_log_scale"]
    # The other base of a class made by _swapped_class; SwappedConv2d itself has only nn.Conv2d.
    (plain,) = (base for base in type(conv).__bases__ if base is not SwappedConv2d)
    conv.__class__ = plain


def why_not_swappable(module: nn.Module) -> str | None:
    """None if a module can be a target, else why it cannot, as the end of "X cannot be swapped: ..."."""
    if isinstance(module, SwappedConv2d):
        return "it is swapped already; hotswap.revert the network first and name all targets together"
    if not isinstance(module, nn.Conv2d):
        return f"it is a {type(module).__name__}, and targets are 2-D convolutions"
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return "it is a lazy convolution that has not run yet; run the network once"
    plain: Any = nn.Conv2d
    changed = [
        name for name in ("forward", "_conv_forward") if getattr(type(module), name) is not getattr(plain, name)
    ]
    changed += [name for name in ("forward", "_conv_forward") if name in module.__dict__]
    if changed:
        return f"{type(module).__name__} computes its convolution in its own {changed[0]}, which a swap would drop"
    if not max(module.kernel_size) > 1:
        return "its window is 1x1, where the adapting kernel is always 1"
    if any(k % 2 == 0 for k in module.kernel_size):
        return f"its window {tuple(module.kernel_size)} is even and has no centre"
    return None
