"""The fast CPU path: the same arithmetic as `reference`, a cache-sized block of rows at a time.

Nothing here stores k*k copies of an activation. The taps of a block of output rows are strided views of the
zero-padded input; they are multiplied by K into one buffer that stays in the cache, and one matrix product
consumes it. The backward pass walks the same blocks. A transposed convolution is the backward pass of the
convolution that goes the other way, with K indexed from there; no inserted zero is ever multiplied. Pooling and
distances from given centres go tap by tap over a block. Distances between pixels are computed once for each pair:
the distance at offset d seen from i is the distance at -d seen from i + d.
"""

from pac_ops.backends.blocked.convolution import (
    pacconv2d,
    pacconv2d_backward,
    pacconv_transpose2d,
    pacconv_transpose2d_backward,
)
from pac_ops.backends.blocked.distance import (
    gaussian_kernel2d,
    squared_distance2d,
    squared_distance2d_backward,
)
from pac_ops.backends.blocked.enlargement import (
    pacresize2d,
    pacresize2d_backward,
    resize_distance2d,
    resize_distance2d_backward,
)
from pac_ops.backends.blocked.pooling import pacpool2d, pacpool2d_backward
