"""Segmentation networks for recipes: functions whose options a recipe can set.

They take images in RGB, (image - mean) / std of an image in 0..1. Which mean and std depends on where the weights of
a FCN-8s came from: ImageNet's, or for those of Caffe (122.679, 116.669, 104.007) / 255 and 1 / 255.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hotswap.checkpoint.load import load_weights
from hotswap.checkpoint.read import read
from hotswap.errors import HotswapError
from hotswap.zoo.providers import IMAGENET_STD
from recipes.networks.fcn8s import FCN8s
from recipes.networks.with_crf import WithCRF

TORCHVISION = "torchvision"


def fcn8s(
    num_classes: int = 21,
    padding: int = 1,
    hidden: int = 4096,
    interpolate: bool = False,
    vgg16: str | None = None,
    caffe: str | None = None,
) -> FCN8s:
    """FCN-8s, with random weights or those of a file.

    Args:
        num_classes: channels of the output.
        padding: 1, or 100 as published; see `FCN8s`.
        hidden: channels of fc6 and fc7.
        interpolate: see `FCN8s`.
        vgg16: a file with the weights of torchvision's VGG16, or "torchvision", which fetches them.
        caffe: a file with the weights of a FCN-8s of Caffe, under the published names, which wants images in BGR; so
            the colours of conv1_1 are turned round.

    Raises:
        HotswapError: where both files are given, or one cannot be read or does not fit.
    """
    if vgg16 is not None and caffe is not None:
        raise HotswapError("vgg16 and caffe are both given; leave one out")
    network = FCN8s(num_classes, padding, hidden, interpolate)
    if vgg16 is not None:
        _load_vgg16(network, vgg16)
    if caffe is not None:
        load_weights(network, read(caffe))
        with torch.no_grad():
            first = network.get_parameter("conv1_1.weight")
            first.copy_(first.flip(1))  # BGR
    return network


def fcn8s_paccrf(
    num_classes: int = 21,
    padding: int = 1,
    hidden: int = 4096,
    dilations: Sequence[int] = (16, 64),
    std: Sequence[float] = IMAGENET_STD,
    interpolate: bool = False,
    vgg16: str | None = None,
    caffe: str | None = None,
    backbone: str | None = None,
    steps: int = 5,
    loose: bool = False,
    kernel_size: int = 5,
    compat_type: str = "4d",
    blur: int = 1,
    spatial_filter: bool = True,
    unary_weight: float = 1.0,
    fixed_weighting: bool = False,
    channel_scales: bool = False,
) -> WithCRF:
    """FCN-8s with a PAC-CRF behind it.

    Args:
        num_classes: channels of the output.
        padding: see `fcn8s`.
        hidden: see `fcn8s`.
        dilations: of the CRF's pairwise kernels; see `WithCRF`.
        std: of the images; see `WithCRF`.
        interpolate: see `fcn8s`.
        vgg16: see `fcn8s`.
        caffe: see `fcn8s`.
        backbone: a file that a run of the recipe fcn8s or pacfcn left. Swaps in it are not carried out.
        steps: see `WithCRF`, as the others.
        loose: see there.
        kernel_size: see there.
        compat_type: see there.
        blur: see there.
        spatial_filter: see there.
        unary_weight: see there.
        fixed_weighting: see there.
        channel_scales: see there.

    Raises:
        HotswapError: where more than one file is given, or one cannot be read or does not fit.
    """
    if backbone is not None and (vgg16 is not None or caffe is not None):
        raise HotswapError("backbone is given together with vgg16 or caffe; leave one out")
    network = fcn8s(num_classes, padding, hidden, interpolate, vgg16, caffe)
    if backbone is not None:
        load_weights(network, read(backbone))
    return WithCRF(
        network,
        num_classes,
        dilations,
        std,
        steps=steps,
        loose=loose,
        kernel_size=kernel_size,
        compat_type=compat_type,
        blur=blur,
        spatial_filter=spatial_filter,
        unary_weight=unary_weight,
        fixed_weighting=fixed_weighting,
        channel_scales=channel_scales,
    )


def segformer(num_classes: int = 21, pretrained: str | None = None) -> nn.Module:
    """SegFormer-B0 of transformers, which gives logits at a quarter of the image's size.

    Args:
        num_classes: channels of the logits.
        pretrained: a name of the model hub, such as nvidia/mit-b0, or a folder; random weights without it.

    Raises:
        OSError: where the hub cannot be reached or knows no such name.
    """
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    network: nn.Module
    if pretrained is None:
        config = SegformerConfig(num_labels=num_classes)  # type: ignore[call-arg]  # its base class takes anything
        network = SegformerForSemanticSegmentation(config)
    else:
        network = SegformerForSemanticSegmentation.from_pretrained(pretrained, num_labels=num_classes)
    return network


def _load_vgg16(network: FCN8s, path: str) -> None:
    if path == TORCHVISION:
        from torchvision.models import VGG16_Weights

        weights: dict[str, Tensor] = VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    else:
        weights = read(path).state_dict
    try:
        network.load_vgg16(weights)
    except (KeyError, RuntimeError) as error:
        raise HotswapError(
            f"vgg16 must be a checkpoint of torchvision's VGG16, and {path!r} does not fit ({error})"
        ) from error
