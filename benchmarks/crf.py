"""PAC-CRF as in the paper's segmentation experiments, against the usual dense CRF."""

from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch

import pac_ops
from benchmarks.harness import FORWARD, Candidate, Case
from benchmarks.operators import ours

CLASSES, SIZE, STEPS, DENSE_STEPS = 21, 500, 5, 10
DILATIONS = (16, 64)
DENSE = f"pydensecrf, {DENSE_STEPS} steps"


def inference(device: torch.device) -> Mapping[str, Candidate]:
    """One image: 21 classes, 500 x 500, two 5 x 5 kernels at dilation 16 and 64, 5 steps."""
    torch.manual_seed(0)
    kernels = [{"kernel_size": 5, "dilation": d, "compat_type": "4d"} for d in DILATIONS]
    crf = pac_ops.PacCRF(CLASSES, STEPS, pairwise_kernels=kernels).to(device)
    unary = torch.randn(1, CLASSES, SIZE, SIZE, device=device)
    image = torch.rand(1, 3, SIZE, SIZE, device=device)
    features = [image / 0.2] * len(DILATIONS)

    def run() -> None:
        with torch.no_grad():
            crf(unary, features)

    candidates: dict[str, Candidate] = {ours(device): run}
    if find_spec("pydensecrf") is not None:  # needs a C++ compiler to install, so it is no test dependency
        candidates[DENSE] = _dense(unary, image)
    return candidates


def _dense(unary: torch.Tensor, image: torch.Tensor) -> Candidate:
    from pydensecrf import densecrf

    energies = np.ascontiguousarray(-unary[0].log_softmax(0).flatten(1).cpu().numpy())
    pixels = np.ascontiguousarray((image[0] * 255).byte().permute(1, 2, 0).cpu().numpy())

    def run() -> object:
        crf = densecrf.DenseCRF2D(SIZE, SIZE, CLASSES)
        crf.setUnaryEnergy(energies)
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=pixels, compat=10)
        return crf.inference(DENSE_STEPS)

    return run


def cases(device: torch.device) -> Iterator[Case]:
    """Inference."""
    workload = f"b1-c{CLASSES}-{SIZE}x{SIZE}-k5-d{'+'.join(map(str, DILATIONS))}-steps{STEPS}"
    yield Case("PacCRF", FORWARD, workload, partial(inference, device))
