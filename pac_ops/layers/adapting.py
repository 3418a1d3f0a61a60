"""The options of the adapting kernel, which all layers have."""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pac_ops import adapting
from pac_ops.arguments import check_devices, check_image, check_mask, or_one
from pac_ops.functional.kernel import kernel_under, mask_kernel2d
from pac_ops.geometry import Pair, Window

Device = torch.device | str | None
Result = Tensor | tuple[Tensor, Tensor]
_OPTIONS = ("kernel_type", "smooth_kernel_type", "normalize_kernel")
_NUMBERS = ("smooth_kernel", "inv_alpha", "inv_lambda")  # which a module is long in finding, and most have none of


class AdaptingLayer(nn.Module):
    """A layer with an adapting kernel: its options, its learnable numbers, and the call that makes K."""

    kernel_type: str
    smooth_kernel_type: str
    normalize_kernel: bool
    inv_alpha: Tensor | None
    inv_lambda: Tensor | None
    smooth_kernel: Tensor | None

    def _set_up_kernel(
        self,
        window: Window,
        kernel_type: str,
        smooth_kernel_type: str,
        normalize_kernel: bool,
        device: Device,
        dtype: torch.dtype | None,
        channels: int | None = None,
    ) -> None:
        function, smooth = adapting.kernel_type(kernel_type), adapting.smooth_type(smooth_kernel_type)
        adapting.warn_if_constant(window, smooth_kernel_type, stacklevel=5)
        self.kernel_type, self.smooth_kernel_type = kernel_type, smooth_kernel_type
        self.normalize_kernel = normalize_kernel
        shape = () if channels is None else (channels,)
        for name, start in (("inv_alpha", function.alpha), ("inv_lambda", function.lambda_)):
            number = torch.full(shape, start, device=device, dtype=dtype) if function.inverse else None
            hold(self, name, number, learnable=not function.fixed)
        smoothing = adapting.smoothing_filter(smooth, device, dtype) if smooth.size else None
        hold(self, "smooth_kernel", smoothing, learnable=smooth.learnable)

    def _kernel(
        self, guide: Tensor | None, kernel: Tensor | None, mask: Tensor | None, window: Window, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """K, from the guide or as given, masked where there is a mask; and the output mask."""
        if guide is None:
            assert kernel is not None  # noqa: S101 (for the type checker; see check_call)
            if mask is None:
                return kernel, None
            given = {name: options[name] for name in ("transposed", "ceil_mode") if name in options}
            _, stride, padding, dilation = window
            return mask_kernel2d(kernel, mask, stride, padding, dilation, self.normalize_kernel, **given)
        if self.kernel_type != "gaussian" or self.smooth_kernel_type != "none":
            for name in _NUMBERS:
                options[name] = getattr(self, name)
        for name in _OPTIONS:
            options[name] = getattr(self, name)
        return kernel_under(window, guide, mask, **options)

    def compute_kernel(self, *_: object, **__: object) -> NoReturn:
        """Not here: see the error.

        Raises:
            NotImplementedError: at every call.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no compute_kernel: write packernel2d(guide, mask, kernel_size, ...) with the "
            "layer's window and kernel type, which returns K and the output mask"
        )

    def extra_repr(self) -> str:
        """The stock layer's, and what differs from a gaussian kernel."""
        shown = [] if self.kernel_type == "gaussian" else [f"kernel_type={self.kernel_type}"]
        shown += [] if self.smooth_kernel_type == "none" else [f"smooth_kernel_type={self.smooth_kernel_type}"]
        shown += ["normalize_kernel=True"] if self.normalize_kernel else []
        shown += ["shared_filters=True"] if getattr(self, "shared_filters", False) else []
        return super().extra_repr() + "".join(f", {text}" for text in shown)


def hold(module: nn.Module, name: str, value: Tensor | None, *, learnable: bool) -> None:
    """Give a module a tensor: as a parameter where it is learnable, else as a buffer."""
    if value is not None and learnable:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


def check_call(
    input: Tensor, guide: Tensor | None, kernel: Tensor | None, mask: Tensor | None, size: Pair | None = None
) -> tuple[Tensor, Tensor | None]:
    """Check the arguments of a call, and return the input with masked pixels zeroed and the mask.

    A NaN of the input that is masked has no effect. A guide and a mask of a single image serve the whole batch; the
    mask is expanded. `size` is the height and width the guide must have, where not the input's.
    """
    if (guide is None) == (kernel is None):
        raise TypeError("give either a guide or a kernel: layer(input, guide) or layer(input, None, kernel)")
    check_image("input", input)
    if guide is not None:
        check_image("guide", guide)
        check_devices(input.device, {"guide": guide})
        whose = "input's batch, height and width" if size is None else "input's batch, the output's height and width"
        height, width = (input.shape[2], input.shape[3]) if size is None else size
        other_batch = guide.shape[0] != input.shape[0] and guide.shape[0] != 1
        if other_batch or guide.shape[2] != height or guide.shape[3] != width:
            batch = or_one(input.shape[0])
            raise ValueError(
                f"guide must be [B or 1, G, H, W] with the {whose}, [{batch}, G, {height}, {width}], "
                f"got {list(guide.shape)}"
            )
    if mask is None:
        return input, None
    mask = check_mask(mask, input.shape[0], input.shape[2], input.shape[3], input.device, "input")
    return torch.where(mask == 0, 0, input), mask  # `masked_fill` returns no channels-last image
