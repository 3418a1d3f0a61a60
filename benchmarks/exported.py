"""Networks exported to ONNX, plain and swapped, in onnxruntime, beside PyTorch."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import hotswap
from benchmarks.harness import FORWARD, Candidate, Case
from benchmarks.networks import GUIDE, PLAIN, SWAPPED, TARGETS
from recipes.networks.fcn8s import FCN8s

OP, SIZE = "ONNX", 256
IN_ORT = ", onnxruntime"
_BARE: dict[str, Any] = {"weights": None, "weights_backbone": None}
_FROM_THE_IMAGE: dict[str, Any] = {"targets": "resize_*", "guide": "input", "guide_scale": 1.0}
# By name: the network, and what is swapped in it.
_NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "FCN-8s (512 in fc6 and fc7)": (partial(FCN8s, hidden=512), {"targets": TARGETS, "guide": GUIDE}),
    "fcn_resnet50": (
        partial(torchvision.models.segmentation.fcn_resnet50, **_BARE),
        {"targets": "paper", "guide": "auto", "guide_scale": 0.1},
    ),
    "lraspp_mobilenet_v3_large": (
        partial(torchvision.models.segmentation.lraspp_mobilenet_v3_large, **_BARE),
        _FROM_THE_IMAGE,
    ),
}


def exported(name: str) -> Mapping[str, Candidate]:
    """Inference of one image of 256 x 256; `hotswap.export` has held the files against PyTorch."""
    import onnxruntime

    make, swaps = _NETWORKS[name]
    torch.manual_seed(0)
    plain = make().eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    candidates: dict[str, Candidate] = {}
    for label, network in ((SWAPPED, hotswap.convert(plain, example_inputs=image, **swaps)), (PLAIN, plain)):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            hotswap.export(network, file, example_inputs=image)
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: image.numpy()}
        candidates[label + IN_ORT] = partial(session.run, None, feed)
        candidates[label] = partial(_infer, network, image)
    return candidates


def _infer(network: nn.Module, image: torch.Tensor) -> None:
    with torch.no_grad():
        network(image)


def cases() -> Iterator[Case]:
    """Three networks."""
    for name in _NETWORKS:
        yield Case(OP, FORWARD, name, partial(exported, name))
