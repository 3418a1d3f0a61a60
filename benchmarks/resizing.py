"""Guided enlargement beside plain bilinear."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F

import pac_ops
from benchmarks.harness import BOTH, FORWARD, Candidate, Case
from benchmarks.operators import ours

COARSE, FINE = 64, 512
CLASSES = (21, 1)
BILINEAR, WIDE = "F.interpolate bilinear", "4 x 4 footprint"


def enlargement(device: torch.device, classes: int, mode: str) -> Mapping[str, Candidate]:
    """Class scores from 64 x 64 to 512 x 512, guided by an image; with gradients, of the scores."""
    torch.manual_seed(0)
    scores = torch.randn(1, classes, COARSE, COARSE, device=device, requires_grad=mode == BOTH)
    image = torch.rand(1, 3, FINE, FINE, device=device)

    def guided() -> torch.Tensor:
        return pac_ops.pacresize2d(scores, image, scale=10.0)

    def wide() -> torch.Tensor:
        return pac_ops.pacresize2d(scores, image, scale=10.0, footprint=4)

    def bilinear() -> torch.Tensor:
        return F.interpolate(scores, size=(FINE, FINE), mode="bilinear")

    candidates = {ours(device): guided, WIDE: wide, BILINEAR: bilinear}
    if mode == FORWARD:
        return candidates
    gradient = torch.randn(1, classes, FINE, FINE, device=device)
    return {name: partial(_backward, run, scores, gradient) for name, run in candidates.items()}


def _backward(run: Callable[[], torch.Tensor], scores: torch.Tensor, gradient: torch.Tensor) -> None:
    torch.autograd.grad(run(), scores, gradient)


def cases(device: torch.device) -> Iterator[Case]:
    """Many classes and one, with gradients and without."""
    for classes in CLASSES:
        for mode in (FORWARD, BOTH):
            workload = f"b1-c{classes}-{COARSE}to{FINE}-g3"
            yield Case("pacresize2d", mode, workload, partial(enlargement, device, classes, mode))
