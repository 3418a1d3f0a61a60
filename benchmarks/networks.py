"""A whole network, plain and swapped: FCN-8s with the paper's three layers."""

import copy
from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F

import hotswap
from benchmarks import gpu
from benchmarks.harness import Candidate, Case
from recipes.networks.fcn8s import FCN8s

TARGETS, GUIDE = ["conv3_3", "conv4_3", "conv5_3"], "conv2_2"
PLAIN, SWAPPED = "plain", "swapped"
LAST = ", channels-last"  # of either, where both layouts are measured
SIZE = 512


def fcn8s(device: torch.device, dtype: torch.dtype, *, training: bool) -> Mapping[str, Candidate]:
    """Inference, or forward, loss and backward, of one image of 512 x 512."""
    torch.manual_seed(0)
    with device:  # on a GPU drawing 134 million weights takes seconds less
        plain = FCN8s()
    swapped = hotswap.convert(plain, targets=TARGETS, guide=GUIDE)
    image = torch.randn(1, 3, SIZE, SIZE, device=device)
    labels = torch.randint(21, (1, SIZE, SIZE), device=device)

    def step(network: torch.nn.Module, image: torch.Tensor) -> None:
        network.train(training)
        network.zero_grad()
        with (
            torch.set_grad_enabled(training),
            torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            scores = network(image)
            if training:
                F.cross_entropy(scores, labels).backward()

    steps = {PLAIN: partial(step, plain, image), SWAPPED: partial(step, swapped, image)}
    if gpu.is_gpu(device):  # the fast layout there
        last = image.to(memory_format=torch.channels_last)
        for name, network in ((PLAIN, plain), (SWAPPED, swapped)):
            other = copy.deepcopy(network).to(memory_format=torch.channels_last)
            steps[name + LAST] = partial(step, other, last)
    return steps


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Inference and training."""
    for training, mode in ((False, "inference"), (True, "training step")):
        yield Case("FCN-8s", mode, f"b1-{SIZE}x{SIZE}", partial(fcn8s, device, dtype, training=training), dtype=dtype)
