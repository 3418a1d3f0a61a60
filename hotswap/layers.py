"""What a target becomes: a subclass of its own class whose forward is pixel-adaptive."""

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import pac_ops
from hotswap import kernels
from hotswap.errors import HotswapError
from hotswap.plan import Swap
from pac_ops import geometry
from pac_ops.adapting import KernelType
from pac_ops.dtypes import accumulate_dtype
from pac_ops.layers import pad_as, window_of


class SwappedConv2d(nn.Conv2d):
    """A convolution steered by a guide: `forward(input, distance)`, weights and names unchanged.

    `distance` is ||f_i - f_j||^2 of the unscaled guide, [B, 1, kh, kw, Ho, Wo]; the adapting kernel is
    K = exp(-s^2/2 ||f_i - f_j||^2), or another function of s^2 ||f_i - f_j||^2, with this layer's scale s, so targets
    of different scale can share distances.
    """

    guide_log_scale: nn.Parameter | None  # log s where the scale is learned
    tap_factors: Tensor | None  # what K is multiplied by to conserve its mean at each tap, [kh, kw, 1, 1]
    _swap: Swap
    _function: KernelType

    @property
    def swap(self) -> Swap:
        """What was asked for, and measured, with the scale as it is now."""
        return replace(self._swap, guide_scale=self.guide_scale)

    @property
    def guide_scale(self) -> float:
        """The scale s of the guide, now."""
        log_scale = self.guide_log_scale
        return self._swap.guide_scale if log_scale is None else log_scale.exp().item()

    @guide_scale.setter
    def guide_scale(self, scale: float) -> None:
        self.reset(guide_scale=scale)

    def reset(self, **changes: Any) -> None:
        """Change entries of `swap`; a deviation measured before no longer holds, unless given.

        Raises:
            HotswapError: where the values do not fit; nothing has changed then.
        """
        self._swap = replace(self.swap, **{"deviation": None} | changes)
        if self.guide_log_scale is not None:
            with torch.no_grad():
                self.guide_log_scale.fill_(self._swap.guide_scale).log_()
        self._set_tap_factors()

    def adapting_kernel(self, distance: Tensor) -> Tensor:
        """K for these distances, before anything is conserved, in their shape and dtype."""
        if self.guide_log_scale is None:
            scaled = distance * self._swap.guide_scale**2
        else:
            scaled = distance * torch.exp(2 * self.guide_log_scale.to(distance.dtype))
        return kernels.adapting_kernel(scaled, self._function)

    def deviation(self, distance: Tensor) -> Tensor:
        """1 - K in float64, before anything is conserved; also where K itself would round to 1 in float32."""
        return kernels.deviation(distance.double() * self.guide_scale**2, self._function)

    def forward(self, input: Tensor, distance: Tensor | None = None) -> Tensor:
        """Pixel-adaptive convolution of the input; see the class.

        Raises:
            HotswapError: where it is called without distances, that is, not by the rewritten forward.
        """
        if distance is None:
            raise HotswapError(
                f"the convolution swapped for guide {self._swap.guide_name!r} was called without its guide: "
                "something other than the forward that hotswap rewrote called it; call the network itself, or "
                "hotswap.revert it"
            )
        window = window_of(self)
        kernel = self.adapting_kernel(distance)
        if self.tap_factors is not None:
            kernel = kernel * self.tap_factors
        elif self._swap.conserve == "window":
            kernel = kernels.keep_window_sum(kernel, valid_taps(self, input))
        padded, padding = pad_as(self.padding_mode, input, window.padding)
        return pac_ops.pacconv2d(
            padded, kernel, self.weight, self.bias, window.stride, padding, window.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """What print(model) shows."""
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        scale = f"guide_scale={self.guide_scale:.4g}" + ("" if self.guide_log_scale is None else " (learned)")
        shown = [f"guide={self._swap.guide_name}", scale]
        shown += [f"kernel={self._swap.kernel}"] if self._swap.kernel != kernels.DEFAULT_KERNEL else []
        shown += [f"conserve={self._swap.conserve}"] if self._swap.conserve is not None else []
        return ", ".join([plain, *shown])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._set_tap_factors()  # from the numbers themselves, which a conversion to half precision would round
        return moved

    def _set_tap_factors(self) -> None:
        means = self._swap.tap_means
        factors: Tensor | None = None
        if means is not None:
            dtype = accumulate_dtype(self.weight.dtype)
            factors = torch.tensor(means, device=self.weight.device, dtype=dtype).reciprocal()
            factors = factors.view(*self._swap.kernel_size, 1, 1)
        self.register_buffer("tap_factors", factors, persistent=False)


def valid_taps(conv: nn.Conv2d, input: Tensor) -> Tensor:
    """Which taps of a convolution read a pixel of the image: bool [kh, kw, Ho, Wo]."""
    window = window_of(conv)
    height, width = input.shape[2:]
    if conv.padding_mode == "zeros":
        return geometry.valid_taps(window, height, width, input.device)
    # Padded with pixels of the image, so every tap reads one.
    size = window.output_size(height, width)
    return torch.ones(*window.kernel_size, *size, dtype=torch.bool, device=input.device)


@functools.cache
def _swapped_class(plain: Any) -> Any:  # from and to a type[nn.Conv2d], which mypy does not take for hashable
    if plain is nn.Conv2d:
        return SwappedConv2d
    # SwappedConv2d comes first, so that its forward wins; the plain class stays a base, so isinstance holds.
    return type(f"Swapped{plain.__name__}", (SwappedConv2d, plain), {})


def swap_in(conv: nn.Conv2d, swap: Swap) -> None:
    """Make a convolution pixel-adaptive, in place. Undone by `swap_out`."""
    plain: Any = type(conv)
    conv.__class__ = _swapped_class(plain)
    assert isinstance(conv, SwappedConv2d)  # noqa: S101 (for the type checker)
    conv._swap, conv._function = swap, kernels.parse(swap.kernel)
    log_scale: nn.Parameter | None = None
    if swap.learn_scale:
        log_scale = nn.Parameter(torch.tensor(swap.guide_scale, device=conv.weight.device).log())
    conv.register_parameter("guide_log_scale", log_scale)
    conv._set_tap_factors()


def swap_out(conv: SwappedConv2d) -> None:
    """Make a swapped convolution plain again, in place, with its current weights."""
    del conv._swap, conv._function
    del conv._parameters["guide_log_scale"], conv._buffers["tap_factors"]
    conv._non_persistent_buffers_set.discard("tap_factors")
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
