"""Exported networks, held against PyTorch at sizes that the exporter has not seen."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import hotswap

from .outputs import gap, leaves
from .program import Loaded


def largest_gap(swapped: nn.Module, loaded: Loaded, more: tuple[int, int]) -> tuple[float, int]:
    """How far ONNX Runtime's numbers are from PyTorch's, relative to the largest, and at how many sizes that is so.

    Raises:
        HotswapError: where the network cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        written = hotswap.export(swapped, file, example_inputs=loaded.image(loaded.program.size))
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    worst, tried = 0.0, 0
    for image in _images(written.inputs[0], loaded, more):
        with torch.no_grad():
            try:
                expected = leaves(swapped(image.clone()))
            except Exception:  # noqa: BLE001, S112 (a size that the plain network does not take either)
                continue
        found = [torch.from_numpy(y) for y in session.run(None, {name: image.numpy()})]
        if [x.shape for x in found] != [x.shape for x in expected]:
            return float("inf"), tried
        worst, tried = max(worst, gap(found, expected)), tried + 1
    return worst, tried


def _images(open_sizes: tuple[int | str, ...], loaded: Loaded, more: tuple[int, int]) -> Iterator[Tensor]:
    """At the example's size, another and one more, and other batches: as far as the file leaves them open."""
    example = loaded.program.size
    batch = open_sizes[0] if isinstance(open_sizes[0], int) else None
    for number, size in enumerate((example, loaded.program.other, more)):
        fits = [isinstance(n, str) or n == own for n, own in zip(open_sizes[2:], size, strict=True)]
        if all(fits):
            yield loaded.image(size, batch=batch or number + 1, seed=20 + number)
