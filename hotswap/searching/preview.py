"""`hotswap.preview`: what guided enlargements change on images without labels, and where."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hotswap.files.atomic import PathLike
from hotswap.files.image_files import spread
from hotswap.searching.family import CALIBRATED_ON, FAMILY, Candidate, Options, candidates, structures
from hotswap.searching.result import Table, sizes_text
from hotswap.tables import render

if TYPE_CHECKING:
    from hotswap.network.batches import Batches, Pick
    from hotswap.network.predictions import Layout
    from hotswap.reporting.samples import Progress

DISTANCE = 3  # pixels from an edge of the image, within which a change counts as near it
_STRONGEST = 0.1  # the share of pixels, those of the steepest change of colour, that are an image's edges
_MOVED = 0.01  # of a map's range: a number that changes by more has changed


@dataclass(frozen=True)
class Change:
    """What one swap changes; means over images."""

    candidate: Candidate
    changed: float  # share of pixels
    near_edges: float  # of these, the share near edges of the image; nan where nothing changes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        near = None if math.isnan(self.near_edges) else self.near_edges
        return self.candidate.to_dict() | {"changed": self.changed, "changed_near_edges": near}


@dataclass(frozen=True)
class Preview:
    """What swaps change on images without labels. Whether that is better, only labels can say."""

    changes: tuple[Change, ...]
    near_edges: float  # share of all pixels that are near edges of the image
    what: str  # what counts as a change of a pixel
    sizes: tuple[tuple[int, int], ...]  # of the maps that were compared
    images: str
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """One row a swap."""
        rows = [(*each.candidate.row, f"{each.changed:.2%}", _share(each.near_edges)) for each in self.changes]
        columns = ("enlargements", "swap", "guide scale", "pixels changed", f"of these within {DISTANCE} px of edges")
        return Table(columns, tuple(rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "changes": [each.to_dict() for each in self.changes],
            "near_edges": self.near_edges,
            "what": self.what,
            "sizes": [list(size) for size in self.sizes],
            "images": self.images,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """A table, and what its numbers mean."""
        where = f"{self.images}; maps of {sizes_text(self.sizes)}; a pixel changes where {self.what}"
        return "\n".join(
            [
                render(self.table.columns, self.table.rows),
                f"{where}; {self.near_edges:.0%} of all pixels are as near to an edge of the image",
                *(f"note: {note}" for note in self.notes),
                "Without labels nothing is chosen: only they can say whether a change is for the better.",
            ]
        )


def preview(
    model: nn.Module,
    images: "PathLike | Batches",
    *,
    family: Sequence[Options] = FAMILY,
    limit: int = 100,
    input_size: tuple[int | None, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    inputs: "Pick | None" = None,
    progress: "Progress | None" = None,
) -> Preview:
    """Say what a small family of guided enlargements changes on images without labels, and where.

    Args:
        model: the plain network; it is left as it is.
        images: a folder, or batches: see `search`.
        family: see `search`.
        limit: see `search`.
        input_size: see `search`.
        mean: see `search`.
        std: see `search`.
        inputs: see `search`.
        progress: see `search`.

    Raises:
        HotswapError: where the network has no enlargement to guide, or there are no images.
    """
    from hotswap.searching import samples
    from hotswap.searching.running import Runner, layout_for, of_small_maps

    options = samples.FolderOptions(limit, input_size, mean, std)
    source = samples.source_for(model, images, None, inputs, options)
    example = source.read(0).sample.arguments
    layout = layout_for(model, example)
    few = spread(range(len(source)), CALIBRATED_ON)
    data = [source.read(i).sample.arguments for i in few]
    ways, refused = structures(model, family, data, source.about.stats)
    notes = [*source.about.notes, *of_small_maps(layout, example), *refused]
    field = candidates(ways)
    seen: dict[str, list[tuple[float, float]]] = {each.key: [] for each in field}
    edges = []
    track = progress or (lambda items, *_: items)
    with Runner(model, ways, layout, notes) as runner:
        for index in track(range(len(source)), len(source), f"{len(field)} swaps on {len(source)} images"):
            arguments = source.read(index).sample.arguments
            output = runner.plain(arguments)
            plain = _shown(layout, output)
            near = _near_edges(arguments[0], runner.size_of(output))
            edges.append(float(near.float().mean()))
            for each in field:
                changed = _changed(plain, _shown(layout, runner.swapped(each, arguments)))
                seen[each.key].append((float(changed.float().mean()), float((changed & near).float().mean())))
    changes = []
    for each in field:
        all_, near_ = (sum(values) / len(values) for values in zip(*seen[each.key], strict=True))
        changes.append(Change(each, all_, near_ / all_ if all_ else math.nan))
    what = "its label does" if _of_labels(layout) else f"its value does by more than {_MOVED:.0%} of the map's range"
    described = source.about.description
    return Preview(tuple(changes), sum(edges) / len(edges), what, tuple(runner.sizes), described, tuple(notes))


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"


def _of_labels(layout: "Layout") -> bool:
    """Whether a map is one of classes, as `hotswap.report` takes it: neither one channel of numbers nor a picture."""
    return layout.labels or layout.channels not in (1, 3)


def _shown(layout: "Layout", output: Any) -> Tensor:
    return (layout.labels_of(output) if _of_labels(layout) else layout.map_of(output)).cpu()


def _changed(plain: Tensor, swapped: Tensor) -> Tensor:
    """Pixels that change, bool [H, W]."""
    if plain.dim() == 2:
        return plain != swapped
    finite = plain[plain.isfinite()]
    reach = float(finite.max() - finite.min()) if finite.numel() else 1.0
    return ((swapped - plain).abs() > _MOVED * reach).any(dim=0)


def _near_edges(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels near those of an image's steepest change of colour, bool [H, W]."""
    import torch.nn.functional as F

    from hotswap.measure.edges import within

    x = F.interpolate(image.detach().float(), size, mode="area").cpu()
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    slope = (across.square() + down.square()).sum(dim=1)
    least = slope.flatten().kthvalue(max(1, round((1 - _STRONGEST) * slope.numel()))).values
    return within((slope > least), DISTANCE)[0]
