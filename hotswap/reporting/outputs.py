"""Outputs of a network, plain and swapped: label maps, maps of numbers and pictures as panels, scores as a table."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hotswap import colours
from hotswap.choices import LABELS, MAPS
from hotswap.measure.compare import tensors
from hotswap.network.names import AUTO
from hotswap.reporting import encoding
from hotswap.reporting.encoding import Picture
from pac_ops.binary import labels_of

PICTURE, SCORES = "picture", "scores"
_TOP = 5  # classes listed for a classifier
_LEGEND = 8  # labels listed for a map, at most
_LEAST_TOLD = 5e-4  # share of a map, below which a label is not listed


@dataclass(frozen=True)
class Panel:
    """A picture of an output."""

    caption: str
    picture: Picture
    alt: str


@dataclass(frozen=True)
class Label:
    """A label, its colour, and its share of the plain and of the swapped map."""

    number: int
    colour: str
    plain: float
    swapped: float


@dataclass(frozen=True)
class Score:
    """A class of a classifier."""

    number: int
    plain: float
    swapped: float


@dataclass(frozen=True)
class Compared:
    """One image's outputs, side by side."""

    where: str  # where the output is in the network's result, as Python code
    shape: tuple[int, ...]
    kind: str  # LABELS, MAPS, PICTURE or SCORES; empty where it cannot be drawn
    panels: tuple[Panel, ...] = ()
    labels: tuple[Label, ...] = ()
    scores: tuple[Score, ...] = ()
    changed: float | None = None  # share of pixels whose label changed; of a classifier, whether its answer did
    probabilities: bool = False  # whether `scores` are probabilities
    others: tuple[str, ...] = field(default=())  # outputs that are not drawn


def compare(plain: Any, swapped: Any, kind: str = AUTO) -> Compared | None:
    """Draw the first output that can be drawn; None where there is none.

    Args:
        plain: the plain network's output: tensors in sequences, mappings and dataclasses.
        swapped: the swapped network's.
        kind: how maps are drawn: "labels", of the channel that is highest (of a single one, 1 where it is above 0),
            "maps", numbers, or "auto": one channel as numbers, three as a picture, any other number as labels.
    """
    before, after = tensors(plain), tensors(swapped)
    shapes = {name: y.shape for name, y in after.items()}
    alike = [name for name, x in before.items() if x.numel() and x.dim() and x.shape == shapes.get(name)]
    for name in sorted(alike, key=lambda name: before[name].dim() != 4):  # maps first; sorting keeps the order
        x, y = (values[name].detach()[0].float().cpu() for values in (before, after))
        if not (drawn := _kind(name, x, kind)):
            continue
        others = tuple(other for other in before if other != name)
        output = Compared(f"output{name}", tuple(before[name].shape), drawn, others=others)
        return {LABELS: _labels, SCORES: _scores}.get(drawn, _maps)(output, x, y)
    return None


def _kind(name: str, x: Tensor, wanted: str) -> str:
    if x.dim() == 1:  # nested deeper, as in the results of detectors, it is not the scores of an image
        return SCORES if re.fullmatch(r"(\[[^\[\]]*\]|\.\w+)?", name) else ""
    if x.dim() != 3 or min(x.shape[1:]) < 2:
        return ""
    if wanted == AUTO:
        return {1: MAPS, 3: PICTURE}.get(x.shape[0], LABELS)
    return wanted


# --- label maps ---------------------------------------------------------------------------------------------------


def _labels(output: Compared, x: Tensor, y: Tensor) -> Compared:
    before, after = (labels_of(values[None])[0] for values in (x, y))
    changed = before != after
    share = float(changed.float().mean())
    palette = colours.labels_palette()
    shown = [encoding.indexed((labels % 256).byte().numpy(), palette) for labels in (before, after)]
    # Changed pixels in the colour of their new label, the others grey.
    grey = np.full((1, 3), 235, np.uint8)
    marked = torch.where(changed, after % 255 + 1, 0).byte().numpy()
    difference = encoding.indexed(marked, np.concatenate([grey, palette[:255]]))
    shares = [
        torch.bincount(labels.flatten(), minlength=max(2, len(x))) / labels.numel() for labels in (before, after)
    ]
    largest = torch.maximum(*shares).argsort(descending=True)[:_LEGEND].tolist()
    legend = tuple(
        Label(n, "#" + bytes(palette[n % 256]).hex(), float(shares[0][n]), float(shares[1][n]))
        for n in largest
        if max(shares[0][n], shares[1][n]) > _LEAST_TOLD
    )
    told = ", ".join(f"label {label.number}: {label.plain:.0%}" for label in legend[:3])
    panels = (
        Panel("plain", shown[0], f"Label map of the plain network ({told})"),
        Panel("swapped", shown[1], "Label map of the swapped network"),
        Panel(f"changed: {share:.2%} of pixels", difference, f"Pixels whose label changed, {share:.2%}"),
    )
    return replace(output, panels=panels, labels=legend, changed=share)


# --- maps of numbers ----------------------------------------------------------------------------------------------


def _maps(output: Compared, x: Tensor, y: Tensor) -> Compared:
    low, high = _range(torch.stack([x, y]))
    difference = y - x
    if output.kind == PICTURE:
        shown = [encoding.photograph(colours.from_tensor(image, low, high)) for image in (x, y)]
        text = "picture"
    else:
        flat = [values[0] if len(values) == 1 else values.square().mean(dim=0).sqrt() for values in (x, y)]
        low, high = _range(torch.stack(flat))
        palette = colours.ramp_palette()
        shown = [encoding.indexed(colours.places(_reduced(values), low, high), palette) for values in flat]
        text = f"{low:.3g} dark to {high:.3g} bright" + (", root mean square over channels" if len(x) > 1 else "")
    mean = _reduced(difference.mean(dim=0))
    reach = _round_up(float(np.quantile(np.abs(np.nan_to_num(mean)), 0.995)))
    drawn = encoding.indexed(colours.places(mean, -reach, reach), colours.difference_palette())
    over = ", mean over channels" if len(x) > 1 else ""
    panels = (
        Panel("plain", shown[0], f"Output of the plain network: {text}"),
        Panel("swapped", shown[1], f"Output of the swapped network: {text}"),
        Panel(
            f"swapped - plain: blue -{reach:.2g}, red +{reach:.2g}",
            drawn,
            f"Difference{over}: blue where the swapped network gives less, red where more, white where the same",
        ),
    )
    return replace(output, panels=panels)


def _reduced(values: Tensor) -> colours.Numbers:
    return encoding.reduced(np.ascontiguousarray(values.numpy(), dtype=np.float32))


def _range(values: Tensor) -> tuple[float, float]:
    finite = values[values.isfinite()]
    return (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)


def _round_up(value: float) -> float:
    """Round up to one digit; 1 for values that are not positive."""
    if not (math.isfinite(value) and value > 0):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / power - 1e-9) * power


# --- scores -------------------------------------------------------------------------------------------------------


def _scores(output: Compared, x: Tensor, y: Tensor) -> Compared:
    several = len(x) > 1
    given = bool(((x >= 0) & (x <= 1)).all()) and math.isclose(float(x.sum()), 1, abs_tol=1e-3)
    before, after = (values if given or not several else values.softmax(dim=0) for values in (x, y))
    highest = torch.maximum(before, after).topk(min(_TOP, len(x))).indices.tolist()
    highest.sort(key=lambda n: -float(before[n]))
    scores = tuple(Score(n, float(before[n]), float(after[n])) for n in highest)
    changed = float(int(before.argmax()) != int(after.argmax())) if several else None
    return replace(output, scores=scores, changed=changed, probabilities=several)


def summary(compared: Sequence[Compared | None]) -> str:
    """One line about the changes over all images; empty where labels and classes are unknown."""
    known = [one for one in compared if one is not None and one.changed is not None]
    if not known:
        return ""
    if known[0].kind == SCORES:
        moved = sum(bool(one.changed) for one in known)
        return f"{moved} of {len(known)} images get another class"
    mean = sum(one.changed or 0.0 for one in known) / len(known)
    return f"{mean:.2%} of pixels get another label, on average"
