"""A whole network, plain and swapped: FCN-8s with the paper's three layers."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F

import hotswap
from benchmarks.harness import Candidate, Case
from recipes.networks.fcn8s import FCN8s

TARGETS, GUIDE = ["conv3_3", "conv4_3", "conv5_3"], "conv2_2"
PLAIN, SWAPPED = "plain", "swapped"
SIZE = 512


def fcn8s(device: torch.device, dtype: torch.dtype, *, training: bool) -> Mapping[str, Candidate]:
    """Inference, or forward, loss and backward, of one image of 512 x 512."""
    torch.manual_seed(0)
    plain = FCN8s().to(device)
    swapped = hotswap.convert(plain, targets=TARGETS, guide=GUIDE)
    image = torch.randn(1, 3, SIZE, SIZE, device=device)
    labels = torch.randint(21, (1, SIZE, SIZE), device=device)

    def step(network: torch.nn.Module) -> None:
        network.train(training)
        network.zero_grad()
        with (
            torch.set_grad_enabled(training),
            torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            scores = network(image)
            if training:
                F.cross_entropy(scores, labels).backward()

    return {PLAIN: partial(step, plain), SWAPPED: partial(step, swapped)}


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Inference and training."""
    for training, mode in ((False, "inference"), (True, "training step")):
        yield Case("FCN-8s", mode, f"b1-{SIZE}x{SIZE}", partial(fcn8s, device, dtype, training=training), dtype=dtype)
