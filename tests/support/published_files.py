"""Checkpoints in the layout of the published code, made with our networks: names, shapes, and what is turned round."""

import torch
import torch_tars
from torch import nn

from recipes.networks import fcn8s
from recipes.networks.djf import DJF
from recipes.networks.fcn8s import FCN8s
from recipes.networks.pac_upsampling import PacUpsampling
from recipes.networks.with_crf import WithCRF

NARROW = ((3, 3, 2), (3, 4, 2), (4, 4, 3), (4, 5, 3), (5, 5, 3))  # in place of VGG16's 64 to 512 channels
HIDDEN, CLASSES = 6, 3
WRITERS = {
    "zip": lambda state, path: torch.save(state, path),
    "pickle": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "tar": torch_tars.save,
}


def narrow(monkeypatch):
    """Make FCN-8s small."""
    monkeypatch.setattr(fcn8s, "STAGES", NARROW)


def filled(network: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state_dict of random numbers, such that the layers' outputs stay of one size."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, x in network.state_dict().items():
        values = torch.randn(x.shape, generator=generator)
        if x.dim() == 4:
            values *= (2 / x[0].numel()) ** 0.5
        state[name] = values.contiguous()
    return state


def upsampling(factor: int, lite: bool) -> dict[str, torch.Tensor]:
    return filled(PacUpsampling(factor, lite))


def djif() -> dict[str, torch.Tensor]:
    return {name.replace("joint.", "branch_joint."): x for name, x in filled(DJF()).items()}


def fcn() -> dict[str, torch.Tensor]:
    """Of all three forms. The guide of hot-swapped layers is large, as its scale is 1e-4."""
    state = filled(FCN8s(CLASSES, hidden=HIDDEN))
    for part in ("weight", "bias"):
        state[f"conv1_1.{part}"] *= 100
        for name in ("score_fr", "score_pool3", "score_pool4"):
            state[f"{name}.{part}"] *= 1e-3  # so that scores are of the size of logits
    return state


def crf(dilations: tuple[int, ...], backbone: nn.Module | None = None, **options) -> dict[str, torch.Tensor]:
    """With a FCN-8s in front of it; three scales a kernel, one for each colour, in BGR."""
    network = WithCRF(backbone or nn.Identity(), CLASSES, dilations, channel_scales=True, **options)
    state = filled(network)
    for name in state:
        if name.startswith("feat_scales"):
            state[name] = 40 + 10 * state[name]
        elif name.endswith("unary_weight") or "pairwise_weights" in name:
            state[name] = 1 + 0.1 * state[name]
    return state | {f"backbone.{name}": x for name, x in fcn().items()}
