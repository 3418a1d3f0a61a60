"""Which published network a file holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hotswap.errors import HotswapError
from hotswap.files.weight_names import listed
from recipes.published import joint, segmentation
from recipes.published.network import Network

_KNOWN = (
    "joint upsampling (branch_t.conv1, up_convts.0), DJIF (branch_joint.0), FCN-8s (conv1_1, score_fr), and that "
    "under backbone. with crf. and feat_scales. beside it"
)


def recognise(weights: Mapping[str, Tensor], file: Path, model: str | None, options: Mapping[str, Any]) -> Network:
    """Tell which network weights under the published names are of.

    Args:
        weights: without a wrapper's prefix.
        file: named in errors; a name that the published page gives also says what is in it.
        model: what the published code's --model was, where the weights do not tell.
        options: of our network, which replace what was told.

    Raises:
        HotswapError: where it is none of those known, or several fit and nothing says which.
    """
    found = {name: tuple(x.shape) for name, x in weights.items()}
    if segmentation.is_segmentation(found):
        return segmentation.recognise(found, file, model, options)
    network = joint.recognise(found, file)
    if network is None:
        raise HotswapError(
            f"{str(file)!r} is none of the published networks that are known; it holds {len(found)} weights, such as "
            f"{listed(found)}, and known are {_KNOWN}"
        )
    if model not in (None, network.name):
        raise HotswapError(f"{str(file)!r} holds a {network.name}, and model says {model!r}; leave it out")
    if options:
        raise HotswapError(f"a {network.name} has no options that its weights do not tell, got {listed(options)}")
    return network
