"""`hotswap.search`: whether a swap helps on labelled images, before any training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from hotswap.choices import METRICS
from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike
from hotswap.files.destinations import check_report
from hotswap.network.names import AUTO
from hotswap.searching.family import FAMILY, Options
from hotswap.searching.result import SearchResult

if TYPE_CHECKING:
    from hotswap.network.batches import Batches, Pick
    from hotswap.reporting.samples import Progress
    from hotswap.searching.samples import Truth
    from hotswap.searching.tasks import Function

DEFAULT_LIMIT = 100


def search(
    model: nn.Module,
    images: "PathLike | Batches",
    *,
    labels: "PathLike | Truth | None" = None,
    metric: "str | Function" = AUTO,
    higher_is_better: bool = True,
    class_index: int | None = None,
    ignore: int = 255,
    unit: float = 1.0,
    family: Sequence[Options] = FAMILY,
    choose_on: float = 0.4,
    limit: int = DEFAULT_LIMIT,
    input_size: tuple[int | None, int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    inputs: "Pick | None" = None,
    page: PathLike | None = None,
    resume: PathLike | None = None,
    progress: "Progress | None" = None,
) -> SearchResult:
    """Try a small family of guided enlargements on labelled images, without training, and say whether one helps.

    Each is compared with the plain network on the same images. The first part of the images chooses: many swaps are
    tried on a few of them, the better half on twice as many, and so on. The rest, which had no part in the choice,
    say how much the chosen one gains. Intervals are at 95 %, over images, paired.

    Args:
        model: the plain network; it is left as it is.
        images: a folder; or batches as for `verify`, whose images are kept. Of a tuple such as (image, label), the
            label is what comes after what the network takes.
        labels: a folder, whose files have the images' names: PNG of indices, colours of PASCAL VOC, masks, depth in
            16 bits, .npy or .flo. For batches, a function that picks the label of a batch.
        metric: what to choose by. "miou": of all pixels of all images, mean over the classes that labels have;
            "iou": of one class, mean over images; "edges": the same within 3 pixels of the true contour; "rmse", mean
            over images; "epe", over pixels; or a function of a map [C, H, W] and its label. "auto" is "epe" for
            labels of two channels, "rmse" for others of numbers, "iou" for masks or one class, else "miou".
        higher_is_better: for a function.
        class_index: the class to look at alone; needed for masks where the network has more than two.
        ignore: the label of pixels that do not count.
        unit: what depth or flow in files is divided by.
        family: the swaps to try, as arguments of `convert`; "last" as targets is the last of "resize". Scales that
            are not named are calibrated, and tried at several strengths.
        choose_on: the share of images to choose on.
        limit: of images in a folder, evenly spread over it.
        input_size: for a folder: channels (or None), height and width. By default what the network states, or each
            image's own, rounded to 32 pixels, and at most 1024.
        mean: for a folder: see `report`.
        std: as mean.
        inputs: for batches: see `verify`.
        page: an HTML file to write, with the tables and pictures.
        resume: a file for what has been measured so far; a search that was interrupted goes on from it. It is removed
            in the end.
        progress: see `report`.

    Raises:
        HotswapError: where the network has no enlargement to guide, or images and labels do not fit it or each other.
    """
    from hotswap.searching import samples, work
    from hotswap.searching.page import write

    if isinstance(metric, str) and metric not in METRICS:
        raise HotswapError(f"metric must be one of {', '.join(METRICS)} or a function, got {metric!r}")
    if not 0 < choose_on < 1:
        raise HotswapError(f"choose_on must be between 0 and 1, got {choose_on!r}")
    if page is not None:
        check_report(page)
    question = work.Question(metric, higher_is_better, class_index, ignore, choose_on)
    options = samples.FolderOptions(limit, input_size, mean, std, unit, question.numbers)
    source = samples.source_for(model, images, labels, inputs, options)
    track = progress or (lambda items, *_: items)
    result = work.carry_out(model, source, question, family, resume, track, pictured=page is not None)
    if page is not None:
        write(result, type(model).__name__, page)
    return result
