"""The compiled CPU path in float16 and bfloat16: what float32 has, of widened tensors.

Products of a convolution in bfloat16, and of its gradients, are by the processor's own instructions where it has them
(AVX512-BF16). K * taps are then rounded to bfloat16, and subnormal numbers count as 0; sums are float32.
"""

import torch
from torch import Tensor

from pac_ops.backends.native import distance, enlargement, pooling
from pac_ops.backends.native.compiled import BFLOAT16, FLOAT32, has_bfloat16
from pac_ops.backends.native.convolution import convolved, gradients
from pac_ops.backends.native.transposed import convolved_transposed, transposed_gradients
from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.enlargement import Enlargement
from pac_ops.formats import contiguous
from pac_ops.geometry import Window


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    return distance.squared_distance2d(_wide(guide), window)


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.gaussian_kernel2d`."""
    return distance.gaussian_kernel2d(_wide(guide), window)


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d_backward`."""
    return distance.squared_distance2d_backward(grad, _wide(guide), window).to(guide.dtype)


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    given = (_wide(input), kernel, weight.float(), None if bias is None else bias.float())
    return convolved(*given, window, groups, _products(input)).to(input.dtype)


def pacconv2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv2d_backward`."""
    given = (_wide(grad), _wide(input), kernel, weight.float())
    return _as(gradients(*given, window, groups, needs, _products(input)), input, kernel, weight)


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv_transpose2d`."""
    given = (_wide(input), kernel, weight.float(), None if bias is None else bias.float())
    return convolved_transposed(*given, window, groups, _products(input)).to(input.dtype)


def pacconv_transpose2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv_transpose2d_backward`."""
    given = (_wide(grad), _wide(input), kernel, weight.float())
    return _as(transposed_gradients(*given, window, groups, needs, _products(input)), input, kernel, weight)


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    return pooling.pacpool2d(_wide(input), kernel, window).to(input.dtype)


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    to_input, to_kernel = pooling.pacpool2d_backward(_wide(grad), _wide(input), kernel, window, needs)
    return _narrowed(to_input, input), _narrowed(to_kernel, kernel)


def resize_distance2d(guide: Tensor, coarse: Tensor, where: Enlargement) -> Tensor:
    """See `reference.resize_distance2d`."""
    return enlargement.resize_distance2d(_wide(guide), _wide(coarse), where)


def resize_distance2d_backward(
    grad: Tensor, guide: Tensor, coarse: Tensor, where: Enlargement
) -> tuple[Tensor, Tensor]:
    """See `reference.resize_distance2d_backward`."""
    to_guide, to_coarse = enlargement.resize_distance2d_backward(grad, _wide(guide), _wide(coarse), where)
    return to_guide.to(guide.dtype), to_coarse.to(coarse.dtype)


def guided_resize2d(
    input: Tensor, guide: Tensor, coarse: Tensor, where: Enlargement, scale: float | Tensor, residual: bool
) -> Tensor:
    """See `native.guided_resize2d`."""
    return enlargement.guided_resize2d(input, _wide(guide), _wide(coarse), where, scale, residual)


def pacresize2d(input: Tensor, kernel: Tensor, where: Enlargement) -> Tensor:
    """See `reference.pacresize2d`."""
    return enlargement.pacresize2d(_wide(input), kernel, where).to(input.dtype)


def pacresize2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, where: Enlargement, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacresize2d_backward`."""
    to_input, to_kernel = enlargement.pacresize2d_backward(_wide(grad), _wide(input), kernel, where, needs)
    return _narrowed(to_input, input), _narrowed(to_kernel, kernel)


def _products(input: Tensor) -> str:
    """What a convolution's products are of."""
    return BFLOAT16 if input.dtype is torch.bfloat16 and has_bfloat16() else FLOAT32


def _wide(image: Tensor) -> Tensor:
    return contiguous(image).float()


def _narrowed(x: Tensor | None, like: Tensor) -> Tensor | None:
    return None if x is None else x.to(like.dtype)


def _as(wide: Gradients, *operands: Tensor) -> Gradients:
    """Gradients in the dtypes of what they belong to."""
    to_input, to_kernel, to_weight = map(_narrowed, wide, operands)
    return to_input, to_kernel, to_weight
