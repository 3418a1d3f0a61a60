"""Pictures of a search: images with their labels, plain and swapped."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hotswap import colours
from hotswap.reporting import encoding
from hotswap.reporting.encoding import Picture
from hotswap.reporting.outputs import Panel
from hotswap.searching.family import Candidate
from hotswap.searching.halving import Bench
from hotswap.searching.ledger import PLAIN

_EACH = 2  # images of the largest gain, of the middle, and of the largest loss
_VOID = 255  # the place of what does not count in the palette of labels
_RIGHT, _WRONG, _SAME = (23, 112, 63), (178, 32, 38), (235, 235, 235)


@dataclass(frozen=True)
class Pictured:
    """One image."""

    name: str
    better: float  # the gain on this image alone, by the first metric
    panels: tuple[Panel, ...]


def draw(bench: Bench, candidate: Candidate, images: Sequence[int]) -> tuple[Pictured, ...]:
    """Draw the images that gain most, those in the middle, and those that gain least or lose."""
    metric = bench.task.metrics[0]
    sign = 1.0 if metric.higher_is_better else -1.0
    values = [metric.value(bench.rows(key, images, metric)) for key in (PLAIN, candidate.key)]
    better = np.nan_to_num(sign * (values[1] - values[0]))
    order = np.argsort(-better, kind="stable")
    middle = len(order) // 2
    places = dict.fromkeys([*order[:_EACH], *order[middle - 1 : middle - 1 + _EACH], *order[-_EACH:]])
    return tuple(_pictured(bench, candidate, images[place], float(better[place])) for place in places)


def _pictured(bench: Bench, candidate: Candidate, index: int, better: float) -> Pictured:
    item = bench.source.read(index)
    output = bench.runner.plain(item.sample.arguments)
    plain = bench.task.shown(output)
    swapped = bench.task.shown(bench.runner.swapped(candidate, item.sample.arguments))
    truth = bench.task.truth(bench.task.prepare(item.truth, bench.runner.size_of(output)))
    maps = _labels(plain, swapped, truth) if plain.dim() == 2 else _numbers(plain, swapped, truth)
    name, photo = item.sample.name, item.sample.picture
    shown = [] if photo is None else [Panel("image", encoding.photograph(photo), name)]
    return Pictured(name, better, (*shown, *maps))


def _labels(plain: Tensor, swapped: Tensor, truth: Tensor | None) -> list[Panel]:
    named = {"label": truth, "plain": plain, "swapped": swapped}
    panels = [Panel(name, _indexed(x), f"Label map: {name}") for name, x in named.items() if x is not None]
    if truth is None:
        return panels
    counts = truth >= 0
    before, after = ((x == truth) & counts for x in (plain, swapped))
    places = torch.zeros_like(truth).masked_fill(after & ~before, 1).masked_fill(before & ~after, 2)
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = _SAME, _RIGHT, _WRONG
    right, wrong = (float((places == place).float().mean()) for place in (1, 2))
    text = f"green: right only when swapped, {right:.2%}; red: right only when plain, {wrong:.2%}"
    return [*panels, Panel(text, encoding.indexed(places.byte().numpy(), palette), text)]


def _indexed(labels: Tensor) -> Picture:
    places = torch.where(labels < 0, _VOID, labels % 256).byte().numpy()
    return encoding.indexed(places, colours.labels_palette())


def _numbers(plain: Tensor, swapped: Tensor, truth: Tensor | None) -> list[Panel]:
    named = {"label": truth, "plain": plain, "swapped": swapped}
    flat = {name: _flat(x) for name, x in named.items() if x is not None}
    known = np.concatenate([x[np.isfinite(x)] for x in flat.values()])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    palette = colours.ramp_palette()
    panels = [
        Panel(name, encoding.indexed(colours.places(encoding.reduced(x), low, high), palette), f"Map: {name}")
        for name, x in flat.items()
    ]
    if truth is None:
        return panels
    errors = [(x - truth).norm(dim=0) for x in (plain, swapped)]
    change = np.nan_to_num(encoding.reduced((errors[1] - errors[0]).float().numpy()))
    reach = float(np.quantile(np.abs(change), 0.995)) or 1.0
    text = f"blue: nearer to the label when swapped, red: farther, up to {reach:.2g}"
    drawn = encoding.indexed(colours.places(change, -reach, reach), colours.difference_palette())
    return [*panels, Panel(text, drawn, text)]


def _flat(x: Tensor) -> colours.Numbers:
    values = x[0] if len(x) == 1 else x.square().mean(dim=0).sqrt()
    return np.asarray(values.float().numpy(), dtype=np.float32)
