"""`hotswap.report`: one HTML file about a swapped network, and its figures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from hotswap.choices import OUTPUTS
from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike, atomic_write
from hotswap.files.destinations import check_report
from hotswap.network.dry_run import observe
from hotswap.network.names import AUTO
from hotswap.surgery import install
from hotswap.tables import render

if TYPE_CHECKING:
    from hotswap.network.batches import Batches, Pick
    from hotswap.reporting.content import Content
    from hotswap.reporting.samples import Progress

DEFAULT_LIMIT = 6


@dataclass(frozen=True)
class Report:
    """The file that was written, and its content."""

    path: str
    bytes: int
    content: "Content"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"path": self.path, "bytes": self.bytes} | self.content.to_dict()

    def __str__(self) -> str:
        """One line per target, then the outputs and the file."""
        rows = [
            (
                *(t.check.path, t.entry.guide_name, t.check.guide_scale, f"{t.check.deviation:.3g}"),
                t.cost and f"{t.cost.time_ratio:.2f}",
            )
            for t in self.content.targets
        ]
        table = render(("target", "guide", "scale", "deviation (mean 1-K)", "time, of plain"), rows)
        return "\n".join([table, *self.content.lines, f"{self.path}: {self.bytes / 1e6:.1f} MB, one file"])


def report(
    model: nn.Module,
    images: "PathLike | Batches",
    path: PathLike,
    *,
    limit: int = DEFAULT_LIMIT,
    input_size: tuple[int | None, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    outputs: str = "auto",
    checkpoint: PathLike | None = None,
    architecture: str | None = None,
    inputs: "Pick | None" = None,
    progress: "Progress | None" = None,
) -> Report:
    """Write one HTML file about a swapped network, to be sent to a colleague: it needs nothing else, and no network.

    It shows the network with what is swapped and where each guide comes from; of each target the adapting kernel on
    each image, the histogram of K, deviation, scale, time and memory against the plain layer; outputs plain, swapped
    and their difference; the plan, and how to reproduce it all.

    Args:
        model: a converted network; left as it is.
        images: a folder, whose images are resized and normalised; or inputs as for `verify`, shown from their
            smallest value, black, to their largest, white.
        path: an existing file is replaced.
        limit: of images: evenly spread over a folder, or the first of those given. The file says what was left out.
        input_size: for a folder: channels (or None), height and width. By default the network's own, or 224.
        mean: for a folder: of images in 0..1, one number or one for each channel. By default the network's own, or
            ImageNet's.
        std: for a folder: as mean.
        outputs: how output maps are drawn: "labels", of the channel that is highest (of a single one, 1 where it is
            above 0); "maps", numbers; or "auto": one channel as numbers, three as a picture, any other number as
            labels.
        checkpoint: the file that the network was loaded from, for the page to say how it is made again.
        architecture: the plain network's name, such as "torchvision:vgg16" or "package.module:factory", where the
            checkpoint does not say it.
        inputs: for batches: see `verify`.
        progress: wraps what takes long: called with an iterable, its length and what is done, gives the same items.

    Raises:
        HotswapError: where nothing is swapped, there are no images or one cannot be read, or `path` cannot be
            written; what was there is then still there.
    """
    from hotswap.checkpoint.read import read
    from hotswap.reporting import assemble, cost, page, reproduce, samples
    from hotswap.reporting.figures import collect
    from hotswap.zoo.images import form_for

    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise HotswapError(f"limit must be a whole number of at least 1, got {limit!r}")
    if outputs not in OUTPUTS:
        raise HotswapError(f"outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}")
    check_report(path)
    metadata = None if checkpoint is None else read(checkpoint).metadata
    recorded = None if metadata is None else metadata.architecture
    plan = install.current_plan(model)
    if plan is None:
        raise HotswapError("nothing in this network is swapped; hotswap.convert it first")
    folder = images if isinstance(images, str | os.PathLike) else None
    if folder is None:
        if not (input_size is None and mean is None and std is None):
            raise HotswapError("input_size, mean and std are for a folder of images; leave them out with inputs")
        chosen = samples.from_batches(model, images, limit, inputs)  # type: ignore[arg-type]
    else:
        chosen = samples.from_folder(model, folder, form_for(model, input_size, mean, std), limit)
    track = progress or (lambda items, *_: items)
    figures = collect(model, track(chosen.items, chosen.count, "running images"), outputs)
    comparison, first = figures.comparison, figures.shown[0].sample
    try:
        observation = observe(model, first.arguments)
    except HotswapError:  # then the drawing has no sizes; the network did run
        observation = None
    costs = cost.measure(model, comparison.plain, comparison.layers, first, track)
    options = {
        "limit": None if limit == DEFAULT_LIMIT else limit,
        "input_size": input_size,
        "mean": None if mean is None else tuple(mean),
        "std": None if std is None else tuple(std),
        "outputs": None if outputs == AUTO else outputs,
    }
    origin = reproduce.Origin(
        network=type(comparison.plain).__name__,
        checkpoint=None if checkpoint is None else os.fspath(checkpoint),
        architecture=architecture or recorded,
        typed=architecture is not None,
        folder=None if folder is None else os.fspath(folder),
        images=chosen.description,
        output=os.fspath(path),
        options={name: value for name, value in options.items() if value is not None},
    )
    content = assemble.make(model, plan, figures, costs, observation, origin)
    text = page.render(content)
    with atomic_write(path) as temporary:
        size = temporary.write_bytes(text)
    return Report(os.fspath(path), size, content)
