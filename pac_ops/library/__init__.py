"""The operators as `torch.library` registers them, called with no more than a call must cost.

The maths is in the backends. Most operators are polynomials in their inputs: the distances are quadratic in the
guides; the convolutions, the pooling and the enlargement are linear in each of input, kernel and weight. So the
backward of each backward is written with the operators themselves (`gradients`), and gradients of every order exist
on every backend.
"""

from pac_ops.library import gradients, operators
from pac_ops.library.calls import call_of
from pac_ops.library.observers import may_split, untraced

__all__ = [
    "gaussian_kernel2d",
    "may_split",
    "pacconv2d",
    "pacconv2d_or_plain",
    "pacconv_transpose2d",
    "pacconv_transpose2d_or_plain",
    "pacpool2d",
    "pacresize2d",
    "resize_distance2d",
    "squared_distance2d",
    "untraced",
]

operators.register()
gradients.register()

squared_distance2d = call_of("squared_distance2d")
gaussian_kernel2d = call_of("gaussian_kernel2d")
pacconv2d = call_of("pacconv2d")
pacconv2d_or_plain = call_of("pacconv2d_or_plain")
pacconv_transpose2d = call_of("pacconv_transpose2d")
pacconv_transpose2d_or_plain = call_of("pacconv_transpose2d_or_plain")
pacpool2d = call_of("pacpool2d")
resize_distance2d = call_of("resize_distance2d")
pacresize2d = call_of("pacresize2d")
