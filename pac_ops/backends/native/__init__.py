"""The compiled CPU path: `csrc`, built when the package is installed where there is a C compiler.

Convolution is an implicit matrix product, K applied to the taps as they are packed for it or, of few channels, to
the sum of each tap; its gradients are two such products. Pooling, depthwise convolution and enlargement
(`native_resize`) go row by row, the first two of channels-last images by vectors of channels; distances are
computed once for each pair of pixels where there is a window for every pixel, else row by row. Nothing is padded or
copied beyond what a core's cache holds. A transposed convolution is one ordinary convolution for each position
modulo the stride. What it has no code for (transposed depthwise gradients) is `cpu`'s. All this is float32; float64
is in `double`, float16 and bfloat16 in `half`.
"""

from pac_ops.backends.native.colour import srgb_to_lab
from pac_ops.backends.native.compiled import why_not_built
from pac_ops.backends.native.convolution import pacconv2d, pacconv2d_backward
from pac_ops.backends.native.distance import gaussian_kernel2d, squared_distance2d, squared_distance2d_backward
from pac_ops.backends.native.enlargement import (
    guided_resize2d,
    pacresize2d,
    pacresize2d_backward,
    resize_distance2d,
    resize_distance2d_backward,
)
from pac_ops.backends.native.pooling import pacpool2d, pacpool2d_backward
from pac_ops.backends.native.pyramid import halved, with_detail
from pac_ops.backends.native.transposed import pacconv_transpose2d, pacconv_transpose2d_backward
