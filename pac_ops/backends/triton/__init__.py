"""The GPU path: Triton kernels, forward and backward, with the functions of `reference`.

Nothing here stores k*k copies of an activation, and any strides are read as they are. Every direction of every
operator is a walk (`walk`): which pixel does a tap of this pixel read? A convolution slides, its input's gradient
goes the same way back, a transposed convolution spreads, its input's gradient slides. So few kernels serve all:
`gather` sums over taps and channels, `weight_gradient` over pixels, those of `distance` over channels alone. Only
`enlargement` has other kernels: its neighbours are no regular walk.

What follows from the shapes of a call is worked out once (`launch`): a plan, made from layouts alone, with tile sizes
(`tiles`), strides and grid; a call then allocates and launches. `torch.compile` sees the launches themselves
(`library`). So a kernel's arguments are tensors, numbers and constants that can be written down: no tuples but
constant ones.
"""

from pac_ops.backends.triton.convolution import (
    pacconv2d,
    pacconv2d_backward,
    pacconv_transpose2d,
    pacconv_transpose2d_backward,
)
from pac_ops.backends.triton.distance import (
    gaussian_kernel2d,
    squared_distance2d,
    squared_distance2d_backward,
)
from pac_ops.backends.triton.enlargement import (
    pacresize2d,
    pacresize2d_backward,
    resize_distance2d,
    resize_distance2d_backward,
)
from pac_ops.backends.triton.guided import guided_resize2d
from pac_ops.backends.triton.launch import INTERPRETED, traced
from pac_ops.backends.triton.pooling import pacpool2d, pacpool2d_backward

FORMATTED = True  # what comes in channels-last goes out so from the kernels themselves
