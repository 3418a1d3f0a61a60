"""Swapped convolutions: subclasses of the plain classes, whose forward is pixel-adaptive."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import pac_ops
from hotswap.errors import HotswapError
from hotswap.network.derived import derived
from hotswap.targets import kernels
from hotswap.targets.entries import Swap
from hotswap.targets.forward_ops import (
    Shared,
    distance_of,
    fitted_guides,
    image_size,
    projected,
    window_distance,
)
from hotswap.targets.guided_layer import GuidedLayer, make_plain, set_entry, swapped_type
from hotswap.targets.own_convolution import own_weight
from hotswap.targets.window import Sliding, has_own_forward, sliding_of, steered_forward
from pac_ops.adapting import KernelType, count
from pac_ops.dtypes import accumulate_dtype
from pac_ops.subclasses import as_plain


class SwappedLayer(GuidedLayer[Swap]):
    """A layer steered by guides: `forward(input, guides)`, weights and names unchanged.

    Each guide is [B, G, H, W], of any size. The adapting kernel is K = exp(-s^2/2 ||f_i - f_j||^2), or another
    function of s^2 ||f_i - f_j||^2, with this layer's scale s. So targets of different scale can share distances;
    `guides` is a `Shared` then. With a gate a, 1 + a (K - 1) takes K's place.
    """

    sliding: Sliding
    guide_gate: nn.Parameter | None  # a, one number or one for each group of outputs: K' = 1 + a (K - 1)
    guide_projection: nn.Parameter | None  # [P, G k k], to which all guides together are projected
    tap_factors: Tensor | None  # what K is multiplied by to conserve its mean at each tap, [kh, kw, 1, 1]
    _function: KernelType

    @property
    def swap(self) -> Swap:
        """The entry of the plan, with what is learned as it is now."""
        entry, gate, projection = super().swap, self.guide_gate, self.guide_projection
        if gate is not None:
            entry = replace(entry, gate=tuple(gate.tolist()))
        return entry if projection is None else replace(entry, projection=tuple(map(tuple, projection.tolist())))

    def reset(self, **changes: Any) -> None:
        """See the base class; the means to conserve change too."""
        super().reset(**changes)
        if self.guide_gate is not None:
            with torch.no_grad():
                self.guide_gate.copy_(torch.tensor(self._swap.gate, dtype=self.guide_gate.dtype))
        self._set_tap_factors()

    def neutralise(self) -> None:
        """See the base class; nothing is conserved, as K of 1 loses nothing, and there is no gate to be closed."""
        self._parameters["guide_gate"], self._swap = None, replace(self._swap, gate=())
        super().neutralise()
        self.reset(conserve=None, tap_means=None)

    def distance(self, input: Tensor, guides: Sequence[Any] | Shared | None) -> Tensor:
        """||f_i - f_j||^2 of the unscaled guides over the window, [B, 1, kh, kw, Ho, Wo].

        Raises:
            HotswapError: where it was called without guides, or with one that does not fit.
        """
        if guides is None:
            raise HotswapError(
                f"the layer swapped for guide {self._swap.guide_name!r} was called without its guide: something "
                "other than the forward that hotswap rewrote called it; call the network itself, hotswap.revert it, "
                'or convert it with method="hooks"'
            )
        swap, projection, asymmetric = self._swap, self.guide_projection, self._function.asymmetric
        if isinstance(guides, Shared):
            return guides.distance
        size = image_size(swap.target, input)
        if projection is None:
            return window_distance(swap.guide, tuple(guides), size, self.sliding, swap.resize, asymmetric)
        weight = projection.unflatten(1, (-1, swap.projection_window, swap.projection_window))
        fitted = fitted_guides(swap.guide, tuple(guides), size, self.sliding, swap.resize)
        return distance_of(projected(swap.target, fitted, weight), self.sliding, asymmetric)

    def measured(self, input: Tensor, guides: Sequence[Any] | Shared) -> tuple[Tensor, Tensor]:
        """Distances, [B, 1, kh, kw, Ho, Wo], and which taps are off-centre and inside the image, [kh, kw, Ho, Wo]."""
        counts = self.sliding.valid_taps(input)
        kh, kw = self.sliding.kernel_size
        counts[kh // 2, kw // 2] = False
        return self.distance(input, guides).detach(), counts

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

    def steering_kernel(self, input: Tensor, guides: Sequence[Any] | Shared | None) -> Tensor:
        """K for this input, with what is conserved; see `distance`."""
        kernel = self.adapting_kernel(self.distance(input, guides))
        if self.tap_factors is not None:
            return kernel * self.tap_factors.to(kernel.device)  # a pool has no weight to tell it the device
        if self._swap.conserve == "window":
            valid = self.sliding.valid_taps(input)  # whose number the sum over the window is to be, at every pixel
            return count(kernel, valid, valid, normalize=True) * valid.sum(dim=(0, 1))
        return kernel

    def extra_repr(self) -> str:
        """The layer's options in print(model)."""
        plain: str = super().extra_repr()
        shown = self.shown()
        shown += [f"projection={self.swap.projection_text}"] if self.guide_projection is not None else []
        shown += [f"gate={self.swap.gate_text}"] if self.guide_gate is not None else []
        shown += [f"kernel={self._swap.kernel}"] if self._swap.kernel != kernels.DEFAULT_KERNEL else []
        shown += [f"conserve={self._swap.conserve}"] if self._swap.conserve is not None else []
        return ", ".join([plain, *shown])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        self._set_tap_factors()  # from the numbers themselves, which a conversion to half precision would round
        return moved

    def _set_tap_factors(self) -> None:
        means = self._swap.tap_means
        factors: Tensor | None = None
        if means is not None:
            weight = self.weight if isinstance(self, nn.modules.conv._ConvNd) else torch.empty(0)
            factors = torch.tensor(means, device=weight.device, dtype=accumulate_dtype(weight.dtype)).reciprocal()
            factors = factors.view(*self._swap.kernel_size, 1, 1)
        self.register_buffer("tap_factors", factors, persistent=False)


class SwappedConv2d(SwappedLayer, nn.Conv2d):
    """A pixel-adaptive convolution; a subclass with a forward of its own keeps it, but for the convolution inside."""

    def forward(self, input: Tensor, guides: Sequence[Any] | Shared | None = None) -> Tensor:
        """Pixel-adaptive convolution of the input; see the class."""
        kernel = self.steering_kernel(input, guides)
        if isinstance(self, _OwnForward):  # super() at once: from Python 3.12 on, Dynamo follows none in a variable
            return steered_forward(super().forward, self, input, kernel, self.sliding, self.guide_gate)
        window = self.sliding.window()
        return pac_ops.pacconv2d(
            self.sliding.padded(input),
            kernel,
            self.weight,
            self.bias,
            window.stride,
            window.padding,
            window.dilation,
            self.groups,
            gate=self.guide_gate,
        )


class _OwnForward:
    """Marks swapped convolutions whose plain class computes in its own forward."""


class SwappedConvTranspose2d(SwappedLayer, nn.ConvTranspose2d):
    """A pixel-adaptive transposed convolution; the guide has its output's size."""

    def forward(self, input: Tensor, guides: Sequence[Any] | Shared | None = None) -> Tensor:
        """Pixel-adaptive transposed convolution of the input; see the class."""
        window, extra = self.sliding.window(), self.sliding.output_padding
        return pac_ops.pacconv_transpose2d(
            input,
            self.steering_kernel(input, guides),
            self.weight,
            self.bias,
            window.stride,
            window.padding,
            extra,
            self.groups,
            window.dilation,
            gate=self.guide_gate,
        )


class SwappedAvgPool2d(SwappedLayer, nn.AvgPool2d):
    """A pixel-adaptive average pool: its sums are weighted by K, and divided by what they always were."""

    def forward(self, input: Tensor, guides: Sequence[Any] | Shared | None = None) -> Tensor:
        """Pixel-adaptive average of the input; see the class."""
        window, kernel, gate = self.sliding.window(), self.steering_kernel(input, guides), self.guide_gate
        # What the plain pool makes of ones is the share of its divisor that lies inside the image.
        ones = torch.ones_like(as_plain(input)[:1, :1], dtype=accumulate_dtype(input.dtype))
        divided = super().forward(ones) / self.sliding.valid_taps(input).sum((0, 1))
        pooled = pac_ops.pacpool2d(
            input,
            (kernel if gate is None else kernel - 1) * divided,  # before the sums, which half precision may not hold
            window.kernel_size,
            window.stride,
            window.padding,
            window.dilation,
            self.ceil_mode,
        )
        return pooled if gate is None else super().forward(input) + gate.to(pooled.dtype) * pooled


class SwappedFunction(SwappedLayer):
    """A module that calls `F.conv2d` with its own weight: its forward runs, and that call is pixel-adaptive."""

    def forward(self, input: Tensor, guides: Sequence[Any] | Shared | None = None) -> Tensor:
        """Pixel-adaptive forward of the module; see the class."""
        kernel = self.steering_kernel(input, guides)
        return steered_forward(super().forward, self, input, kernel, self.sliding, self.guide_gate)


_SWAPPED: dict[Any, type[SwappedLayer]] = {
    nn.Conv2d: SwappedConv2d,
    nn.ConvTranspose2d: SwappedConvTranspose2d,
    nn.AvgPool2d: SwappedAvgPool2d,
}


@functools.cache
def _swapped_class(plain: Any) -> Any:  # from and to a type[nn.Module], which mypy does not take for hashable
    if plain in _SWAPPED:
        return _SWAPPED[plain]
    swapped = next((kind for stock, kind in _SWAPPED.items() if issubclass(plain, stock)), SwappedFunction)
    marks = (_OwnForward,) if issubclass(plain, nn.Conv2d) and has_own_forward(plain) else ()
    # The swapped class comes first, so that its forward wins; the plain class stays a base, so isinstance holds.
    return derived(f"Swapped{plain.__name__}", (swapped, *marks, plain), (_swapped_class, plain))


def swap_in(module: nn.Module, swap: Swap, device: torch.device) -> None:
    """Make a layer pixel-adaptive, in place; what it learns goes to `device`. Undone by `swap_out`."""
    sliding = sliding_of(module)
    module.__class__ = swapped_type(module, _swapped_class)
    assert isinstance(module, SwappedLayer)  # noqa: S101 (for the type checker)
    module.sliding, module._function = sliding, kernels.parse(swap.kernel)
    set_entry(module, swap, device)
    rows = nn.Parameter(torch.tensor(swap.projection, device=device)) if swap.projection else None
    module.register_parameter("guide_projection", rows)
    module.register_parameter(
        "guide_gate", nn.Parameter(torch.tensor(swap.gate, device=device)) if swap.gate else None
    )
    module._set_tap_factors()


def swap_out(module: SwappedLayer) -> None:
    """Make a swapped layer plain again, in place, with its current weights."""
    del module.sliding, module._function, module._buffers["tap_factors"]
    module._non_persistent_buffers_set.discard("tap_factors")
    make_plain(module)


def shape_of(module: nn.Module) -> tuple[tuple[int, int], int, int]:
    """Window, input and output channels of a layer that can be swapped; a pool has any number, here 0."""
    kernel_size = sliding_of(module).kernel_size
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return kernel_size, module.in_channels, module.out_channels
    weight = own_weight(module)
    return (kernel_size, 0, 0) if weight is None else (kernel_size, weight.shape[1], weight.shape[0])


def why_not_swappable(module: nn.Module) -> str | None:
    """None if a module can be a target, else why it cannot, as the end of "X cannot be swapped: ..."."""
    if isinstance(module, SwappedLayer):
        return "it is swapped already; hotswap.revert the network first and name all targets together"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule, whose code cannot be edited; convert the eager network"
    name = type(module).__name__
    stock: Any = next((stock for stock in _SWAPPED if isinstance(module, stock)), None)
    if isinstance(getattr(module, "weight", None), nn.parameter.UninitializedParameter):
        return "it is a lazy convolution that has not run yet; run the network once"
    weight = own_weight(module)
    if stock is None and weight is None:
        return f"it is a {name}, and targets are 2-D convolutions and average pools"
    if changed := [method for method in ("forward", "_conv_forward") if method in module.__dict__]:
        return f"its {changed[0]} was replaced on the instance, which a swap would drop; undo that first"
    if weight is None and type(module).forward is not stock.forward:
        return f"{name} has a forward of its own, which a swap would drop"
    size: Any = module.kernel_size if weight is None else weight.shape[2:]
    size = (size, size) if isinstance(size, int) else tuple(size)
    if not max(size) > 1:
        return "its window is 1x1, where the adapting kernel is always 1"
    if any(k % 2 == 0 for k in size):
        return f"its window {size} is even and has no centre"
    try:
        sliding_of(module)
    except HotswapError as error:
        return str(error)
    return None
