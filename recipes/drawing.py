"""Predictions as pictures, in the usual colours of each kind of map."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import flow_to_image

from hotswap import colours
from hotswap.colours import Pixels, labels_palette
from hotswap.network.dry_run import device_of, mode
from pac_ops.binary import labels_of
from recipes import config
from recipes.datasets import Tensors, collate, moved
from recipes.pictures import Panel, pixels
from recipes.tasks import predict, target


class Drawn(NamedTuple):
    """The drawing of one image."""

    panels: list[Panel]
    predictions: dict[str, Image.Image]  # the map alone, by network


def ramp(depth: Tensor, low: float, high: float) -> Pixels:
    """Map [1, H, W] from `low` to `high` to colours from dark blue to yellow."""
    return colours.ramp(((depth[0].double().cpu().numpy() - low) / max(high - low, 1e-12)).clip(0, 1))


@torch.no_grad()
def draw(
    networks: Mapping[str, nn.Module],
    seen: Tensors,
    shown: Tensors,
    truth: Tensors | None,
    task: config.Task,
) -> Drawn:
    """Draw the input, the truth where there is one, and the prediction of each network, side by side.

    Args:
        networks: by the caption of their panel.
        seen: what the networks take, without a batch.
        shown: the same as it is to be drawn, images in 0..1.
        truth: what they should give, without a batch.
        task: says what kind of maps they are.
    """
    maps = {}
    for name, network in networks.items():
        device = device_of(network)
        inputs = moved(collate([(seen, torch.empty(0))])[0], device)
        size = shown.shape[-2:] if isinstance(shown, Tensor) else shown[-1].shape[-2:]
        with mode(network, training=False):
            maps[name] = predict(network, inputs, size if truth is None else target(truth).shape[-2:])[0].cpu()
    ranged = list(maps.values()) if truth is None else [target(truth)]
    low, high = min(float(x.min()) for x in ranged), max(float(x.max()) for x in ranged)

    def coloured(x: Tensor) -> Image.Image:
        if isinstance(task, config.Segmentation):
            image = Image.fromarray((x if x.dim() == 2 else labels_of(x[None])[0]).byte().numpy(), mode="P")
            image.putpalette(labels_palette().tobytes())
            return image
        if isinstance(task, config.Depth):
            return Image.fromarray(ramp(x, low, high))
        return Image.fromarray(flow_to_image(x).permute(1, 2, 0).numpy())

    def panel(caption: str, x: Tensor) -> Panel:
        return caption, np.asarray(coloured(x).convert("RGB"))

    panels = [("input", _as_picture(x)) for x in ([shown] if isinstance(shown, Tensor) else shown)]
    if truth is not None:
        panels.append(panel("truth", target(truth)))
    panels += [panel(name, x) for name, x in maps.items()]
    return Drawn(panels, {name: coloured(x) for name, x in maps.items()})


def _as_picture(x: Tensor) -> Pixels:
    """Draw an input of a network: an image, a map of numbers, or a map of vectors."""
    match x.shape[0]:
        case 3:
            return pixels(x)
        case 2:
            return np.asarray(flow_to_image(x).permute(1, 2, 0).numpy())
        case _:
            return ramp(x[:1], float(x.min()), float(x.max()))
