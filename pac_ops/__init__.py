"""Pixel-adaptive convolution operators for PyTorch (Su et al., CVPR 2019). Depends on torch alone."""

from pac_ops.backends.choose import explain, use_backend
from pac_ops.crf.features import create_position_feats, create_YXRGB
from pac_ops.crf.model import PacCRF, PacCRFLoose, refine
from pac_ops.functional.colour import srgb_to_lab
from pac_ops.functional.convolution import pacconv2d, pacconv_transpose2d, pacpool2d
from pac_ops.functional.enlargement import pacresize2d, resize_distance2d, resize_kernel2d
from pac_ops.functional.filters import (
    bilateral_filter,
    detail_preserving_pool2d,
    dynamic_filter2d,
    joint_bilateral_filter,
    joint_bilateral_upsample,
)
from pac_ops.functional.kernel import mask_kernel2d, packernel2d, squared_distance2d
from pac_ops.functional.labels import pacresize2d_labels
from pac_ops.layers.convolution import PacConv2d, PacConvTranspose2d
from pac_ops.layers.enlargement import PacResize2d
from pac_ops.layers.pooling import PacPool2d
from pac_ops.published import nd2col as nd2col  # says what to write instead

__all__ = [
    "PacCRF",
    "PacCRFLoose",
    "PacConv2d",
    "PacConvTranspose2d",
    "PacPool2d",
    "PacResize2d",
    "bilateral_filter",
    "create_YXRGB",
    "create_position_feats",
    "detail_preserving_pool2d",
    "dynamic_filter2d",
    "explain",
    "joint_bilateral_filter",
    "joint_bilateral_upsample",
    "mask_kernel2d",
    "pacconv2d",
    "pacconv_transpose2d",
    "packernel2d",
    "pacpool2d",
    "pacresize2d",
    "pacresize2d_labels",
    "refine",
    "resize_distance2d",
    "resize_kernel2d",
    "squared_distance2d",
    "srgb_to_lab",
    "use_backend",
]
