"""CRFs behind a network that stays as it is. Images are in 0..1, as the experiments have them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pac_ops
from hotswap.errors import HotswapError
from hotswap.network.dry_run import Inputs
from recipes.networks.with_crf import WithCRF

_STEPS = 10  # of the dense CRF, as it is usually run


class Frozen(nn.Module):
    """A network in evaluation mode whatever mode is asked for, and without gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Nothing changes; see the class."""
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        """What the network gives."""
        logits: Tensor = self.network(image)
        return logits


def with_pac_crf(model: nn.Module, dilations: Sequence[int], example: Inputs) -> nn.Module:
    """A PAC-CRF behind a network, with class-to-class weights and learned scales of the image's colours."""
    backbone = Frozen(model).eval()
    with torch.no_grad():
        classes = backbone(example).shape[1]
    return WithCRF(backbone, classes, dilations, std=(1.0, 1.0, 1.0))


def with_dense_crf(model: nn.Module, kind: str) -> nn.Module:
    """A dense CRF behind a network: pydensecrf ("dense_crf"), or `pac_ops.refine` with its parameters ("refine").

    Raises:
        HotswapError: where pydensecrf is not installed.
    """
    return DenseCRF(model) if kind == "dense_crf" else Refined(model)


class Refined(nn.Module):
    """`pac_ops.refine` behind a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = Frozen(network).eval()

    def forward(self, image: Tensor) -> Tensor:
        """Refined logits of an image in 0..1."""
        return pac_ops.refine(self.backbone(image), 255 * image)


class DenseCRF(nn.Module):
    """pydensecrf behind a network, with the parameters of its own example, 10 steps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = Frozen(network).eval()
        try:
            from pydensecrf import densecrf
        except ImportError as error:
            raise HotswapError("a dense CRF needs pydensecrf and a C++ compiler: pip install pydensecrf2") from error
        self.library: Any = densecrf

    def forward(self, image: Tensor) -> Tensor:
        """Logarithms of the probabilities found, [B, classes, H, W]."""
        refined = [self._one(x, pixels) for x, pixels in zip(self.backbone(image), image, strict=True)]
        return torch.stack(refined).to(image.device)

    def _one(self, logits: Tensor, image: Tensor) -> Tensor:
        classes, height, width = logits.shape
        crf = self.library.DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(np.ascontiguousarray(-logits.log_softmax(0).flatten(1).cpu().numpy()))
        pixels = np.ascontiguousarray((255 * image).byte().permute(1, 2, 0).cpu().numpy())
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=pixels, compat=10)
        found = torch.from_numpy(np.array(crf.inference(_STEPS)))
        return found.clamp_min(1e-12).log().view(classes, height, width)
