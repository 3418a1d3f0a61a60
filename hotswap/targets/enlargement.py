"""Guided enlargements: modules that weigh coarse neighbours by a guide."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pac_ops
from hotswap.errors import HotswapError
from hotswap.network.derived import derived
from hotswap.network.names import INPUT
from hotswap.targets.entries import NEAREST, TRANSPOSED, Resize
from hotswap.targets.forward_ops import describe, image_size
from hotswap.targets.guide_spaces import GuideSpace
from hotswap.targets.guided_layer import GuidedLayer, make_plain, set_entry, swapped_type
from pac_ops.area import area_average2d, fitted2d
from pac_ops.dtypes import accumulate_dtype, autocast_dtype
from pac_ops.enlargement import enlarged_size
from pac_ops.geometry import Pair
from pac_ops.subclasses import as_plain


class Options(NamedTuple):
    """The arguments of `F.interpolate` after its input."""

    size: Any = None
    scale_factor: Any = None
    mode: str = "nearest"
    align_corners: bool | None = None
    recompute_scale_factor: bool | None = None
    antialias: bool = False


class GuidedResize(GuidedLayer[Resize]):
    """A guided enlargement, called with (input, guides, *further); `further` are the plain call's other arguments.

    Each guide is [B, G, H, W], of any size; its area average is taken at the output's size, and several count as one
    with all their channels. Where an image's output is not larger than its input, the plain function is called.
    """

    neutral = False  # whether K is 1, in a copy that is compared with the plain network

    def neutralise(self) -> None:
        """See the base class; the plain enlargement is called where K = 1 is another one."""
        super().neutralise()
        self.neutral = True

    def deviation(self, distance: Tensor) -> Tensor:
        """1 - K in float64, also where K itself would round to 1 in float32."""
        return -torch.expm1(distance.double() * (-0.5 * self.guide_scale**2))

    def forward(self, input: Tensor, guides: Sequence[Any] | None = None, *further: Any) -> Tensor:
        """Enlarge the input; see the class.

        Raises:
            HotswapError: where it is called without guides, or with one that does not fit.
        """
        guide = self._guide(input, guides, further)
        if guide is None:
            return self._plain(input, *further)
        if self.neutral and not self._swap.plain_at_zero:
            return self._finished(self._plain(input, *further), input)
        scale = self._swap.guide_scale if self.guide_log_scale is None else self.guide_log_scale.exp()
        factors, align_corners = self._places(input, further)
        out = pac_ops.pacresize2d(
            input,
            guide,
            None if factors else (guide.shape[2], guide.shape[3]),
            factors,
            align_corners,
            scale=scale,
            footprint=self._swap.footprint,
            residual=self._swap.residual,
            halvings=self._swap.halvings,
            bounded=self._swap.bounded,
        )
        return self._finished(out, input)

    def measured(self, input: Tensor, guides: Sequence[Any], *further: Any) -> tuple[Tensor, Tensor] | None:
        """Squared distances, [B, 1, n, n, H, W], and which neighbours have a weight, bool [n, n, H, W].

        Those of the enlargement at once, where it has steps, with the neighbours of the plain one.

        None where the output is not larger than the input.
        """
        guide = self._guide(input, guides, further)
        if guide is None:
            return None
        coarse, (factors, align_corners) = (input.shape[2], input.shape[3]), self._places(input, further)
        averaged = area_average2d(guide, coarse)
        footprint = self._swap.footprint if isinstance(self._swap.footprint, int) else 2
        distance = pac_ops.resize_distance2d(guide, averaged, factors, align_corners, footprint)
        if guide.numel():  # means of a flat guide are off by some roundings, which tell nothing apart
            largest = guide.detach().abs().amax().clamp_min(0.0 if self._swap.space is None else 1.0)
            least = guide.shape[1] * (8 * torch.finfo(averaged.dtype).eps * largest.to(distance.dtype)) ** 2
            distance = torch.where(distance > least, distance, 0)
        flat = distance.new_zeros((1, *distance.shape[1:]))  # of a batch of none, too
        weights = pac_ops.resize_kernel2d(flat, coarse, factors, align_corners, scale=0.0)
        return distance, weights[0, 0] > 0

    def extra_repr(self) -> str:
        """The layer's options in print(model)."""
        plain = super().extra_repr()
        footprint = "" if self._swap.footprint == 2 else f"footprint={self._swap.footprint}"
        space = "" if self._swap.space is None else f"space={self._swap.space}"
        return ", ".join(text for text in (plain, *self.shown(), footprint, space) if text)

    def _guide(self, input: Tensor, guides: Sequence[Any] | None, further: tuple[Any, ...]) -> Tensor | None:
        """All guides as one at the output's size; None where the output is not larger than the input."""
        if guides is None:
            raise HotswapError(
                f"the enlargement guided by {self._swap.guide_name!r} was called without its guide: something "
                "other than the forward that hotswap rewrote called it; call the network itself, or "
                "hotswap.revert it"
            )
        name = self._swap.name
        _, height, width = image_size(name, input)
        coarse, fine = (height, width), self._size(input, further)
        if fine == coarse or fine[0] < coarse[0] or fine[1] < coarse[1]:
            return None
        fitted = []
        for source, guide in zip(self._swap.guide, guides, strict=True):
            if not isinstance(guide, Tensor) or guide.dim() != 4 or not guide.is_floating_point():
                raise HotswapError(
                    f"guide {source!r} must give a floating [B, G, H, W] tensor, got {describe(guide)}"
                )
            if guide.shape[0] != input.shape[0]:
                raise HotswapError(
                    f"guide {source!r} must have the batch size {input.shape[0]} of target {name!r}, got "
                    f"{guide.shape[0]}; take a guide from the same branch"
                )
            fitted.append(self._in_space(source, fitted2d(as_plain(guide), fine, like=input)))
        return fitted[0] if len(fitted) == 1 else torch.cat(fitted, dim=1)

    def _in_space(self, source: str, guide: Tensor) -> Tensor:
        """The guide in the space that is chosen for the image."""
        space = self._swap.space
        if space is None or source != INPUT:
            return guide
        if isinstance(space, GuideSpace):
            return space(guide)
        image = space(guide)
        wanted = (guide.shape[0], *guide.shape[2:])
        if not isinstance(image, Tensor) or image.dim() != 4 or (image.shape[0], *image.shape[2:]) != wanted:
            raise HotswapError(
                f"space must give a [B, C, H, W] tensor of the image's batch, height and width, got {describe(image)}"
            )
        return image

    # Subclasses override some of these.

    def _options(self, further: tuple[Any, ...]) -> Options:
        raise NotImplementedError

    def _size(self, input: Tensor, further: tuple[Any, ...]) -> Pair:
        options = self._options(further)
        return enlarged_size((input.shape[2], input.shape[3]), options.size, options.scale_factor)

    def _places(self, input: Tensor, further: tuple[Any, ...]) -> tuple[tuple[float, float] | None, bool]:
        """The factors, where they say where the coarse pixels lie, and align_corners."""
        options = self._options(further)
        factor = None if options.recompute_scale_factor else options.scale_factor
        if factor is None:
            return None, bool(options.align_corners)
        # No union type, which torch 2.8 does not compile.
        both = (factor, factor) if isinstance(factor, (int, float)) else tuple(factor)
        return (float(both[0]), float(both[1])), bool(options.align_corners)

    def _plain(self, input: Tensor, *further: Any) -> Tensor:
        return F.interpolate(input, *self._options(further))

    def _finished(self, out: Tensor, input: Tensor) -> Tensor:
        return out


class GuidedInterpolate(GuidedResize):
    """Takes the place of a call of `F.interpolate`, and is called with its arguments."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def _options(self, further: tuple[Any, ...]) -> Options:
        return Options(*further)


class GuidedUpsample(GuidedResize, nn.Upsample):
    """An `nn.Upsample` that is guided."""

    def _options(self, further: tuple[Any, ...]) -> Options:
        return Options(self.size, self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor)


class GuidedConvTranspose2d(GuidedResize, nn.ConvTranspose2d):
    """A transposed convolution with bilinear weights that is guided; beyond the edge of its input it reads zeros."""

    def _options(self, further: tuple[Any, ...]) -> Options:
        return Options(scale_factor=(float(self.stride[0]), float(self.stride[1])), mode="bilinear")

    def _finished(self, out: Tensor, input: Tensor) -> Tensor:
        # The weights of a pixel sum to less than 1 at the edge.
        wide, device, padding = accumulate_dtype(out.dtype), input.device, cast("tuple[int, int]", self.padding)
        ones = torch.ones((1, 1, *input.shape[2:]), dtype=wide, device=device)
        with torch.autocast(device.type, enabled=False):
            out = out * F.conv_transpose2d(ones, self.weight[:1, :1].to(wide), None, self.stride, padding)
        out = out if self.bias is None else out + self.bias.to(wide)[:, None, None]
        narrow = autocast_dtype(device.type)
        return out.to(input.dtype if narrow is None or input.dtype == torch.float64 else narrow)


# --- in and out ---------------------------------------------------------------------------------------------


@functools.cache
def _swapped_class(plain: Any) -> Any:  # from and to a type[nn.Module], which mypy does not take for hashable
    guided: Any = GuidedUpsample if issubclass(plain, nn.Upsample) else GuidedConvTranspose2d
    if plain in guided.__bases__:
        return guided
    # The guided class comes first, so that its forward wins; the plain class stays a base, so isinstance holds.
    return derived(f"Guided{plain.__name__}", (guided, plain), (_swapped_class, plain))


def swap_in(model: nn.Module, resize: Resize, device: torch.device) -> None:
    """Make an enlargement guided, in place; a learned scale goes to `device`. Undone by `swap_out`."""
    if resize.call is None:
        layer = model.get_submodule(resize.target)
        layer.__class__ = swapped_type(layer, _swapped_class)
    else:
        layer = GuidedInterpolate()
        owner = model.get_submodule(resize.target)
        owner.add_module(resize.layer_path.rpartition(".")[2], layer)
        layer.training = owner.training
    assert isinstance(layer, GuidedResize)  # noqa: S101 (for the type checker)
    set_entry(layer, resize, device)


def swap_out(model: nn.Module) -> None:
    """Make every guided enlargement of a network plain again, in place."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, GuidedInterpolate):
                del module._modules[name]
    for module in model.modules():
        if isinstance(module, GuidedResize):
            make_plain(module)


# --- what can be ----------------------------------------------------------------------------------------------


def mode_of(module: nn.Module) -> str | None:
    """How a module enlarges, as `Resize.mode` has it or as its own mode; None where it is no enlargement."""
    if isinstance(module, nn.Upsample):
        return str(module.mode)
    if isinstance(module, nn.ConvTranspose2d) and is_bilinear(module):
        return TRANSPOSED
    return None


def why_not_enlarged(mode: Any, module: nn.Module | None = None, *, antialias: Any = False) -> str | None:
    """None if this way of enlarging can be guided, else why it cannot, as the end of "X cannot be swapped: ..."."""
    if isinstance(module, GuidedResize):
        return "it is swapped already; hotswap.revert the network first and name all targets together"
    if isinstance(module, nn.Upsample) and type(module).forward is not nn.Upsample.forward:
        return f"{type(module).__name__} has a forward of its own, which a swap would drop"
    if isinstance(module, nn.ConvTranspose2d) and mode == TRANSPOSED and module.weight.requires_grad:
        return "its bilinear weights can be trained, which a swap would end; freeze them with requires_grad_(False)"
    if mode not in ("bilinear", *NEAREST, TRANSPOSED):
        return f"its mode is {mode!r}, and bilinear or nearest enlargements can be guided"
    if antialias is not False:
        return "it is antialiased"
    return None


def is_bilinear(conv: nn.ConvTranspose2d) -> bool:
    """Whether a transposed convolution enlarges every channel by itself, by bilinear interpolation, in place.

    In place: output pixels lie where those of `F.interpolate(scale_factor=stride)` do.
    """
    if isinstance(conv.weight, nn.parameter.UninitializedParameter) or type(conv).forward is not _TRANSPOSED_FORWARD:
        return False
    if conv.dilation != (1, 1) or any(conv.output_padding) or conv.in_channels != conv.out_channels:
        return False
    filters = []
    margins: Any = conv.padding
    for k, s, p in zip(conv.kernel_size, conv.stride, margins, strict=True):
        if s < 2 or k not in (2 * s, 2 * s - 1) or 2 * p != k - s:
            return False
        filters.append(1 - (torch.arange(k) - (k - 1) / 2).abs() / s)
    weight = conv.weight.detach().float().cpu()
    if weight.is_meta:
        return False
    expected = torch.zeros_like(weight)
    channels = torch.arange(conv.in_channels)
    expected[channels, channels if conv.groups == 1 else 0] = filters[0][:, None] * filters[1]
    return conv.groups in (1, conv.in_channels) and bool(torch.allclose(weight, expected, atol=1e-3))


_TRANSPOSED_FORWARD: Any = nn.ConvTranspose2d.forward
