"""How the data of the paper's tasks are prepared, by name: `protocol` of a recipe, which checkpoints keep.

Figures of two protocols must not be compared, nor a network that learned from the one be given data of the other. No
torch here: recipes are checked before it is imported.
"""

from collections.abc import Mapping

PUBLISHED = "published"  # as the published code of PAC does
CENTRE_PIXEL, ANTIALIASED_BICUBIC, BILINEAR, IMAGENET = "centre_pixel", "antialiased_bicubic", "bilinear", "imagenet"
# Those of each data set; the first holds where a recipe names none.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "nyu": (CENTRE_PIXEL, PUBLISHED, ANTIALIASED_BICUBIC),
    "sintel": (BILINEAR, PUBLISHED),
    "voc": (IMAGENET, PUBLISHED),
}
MADE_BY = ("nyu", "sintel")  # data sets that take the protocol themselves; the other's is a mean and a std
# Published networks of segmentation take what Caffe's VGG16 took: 0..255 without this mean. In BGR there, in RGB
# here, as all networks here do: `hotswap migrate` turns weights of colours round. These are of images in 0..1.
CAFFE_MEAN = (122.679 / 255, 116.669 / 255, 104.007 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)


def why_not(protocol: str, data_set: str) -> str | None:
    """Why a data set has no such protocol; None where it has."""
    if data_set not in KNOWN:
        return f"protocol is of the data sets {', '.join(KNOWN)}, and the data are {data_set}; leave it out"
    if protocol not in KNOWN[data_set]:
        return f"protocol of {data_set} must be one of {', '.join(KNOWN[data_set])}, got {protocol!r}"
    return None
