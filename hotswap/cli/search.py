"""The command that says whether a swap helps: search."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hotswap.choices import METRICS
from hotswap.cli import completion, early, options, output
from hotswap.files import destinations
from hotswap.files.atomic import is_there
from hotswap.searching import pairs
from hotswap.zoo import names

if TYPE_CHECKING:
    from torch import nn


@options.command(
    "hotswap search torchvision:deeplabv3_resnet50 --weights trained.pth --images photos --labels labels \\",
    "    -o best.safetensors",
    "hotswap search mypackage.nets:segmenter --images photos",
    "hotswap search mypackage.nets:segmenter --images photos --labels masks --class 13 -o best.safetensors",
    "hotswap search mypackage.nets:depth --images photos --labels depth --unit 1000 --metric rmse -o best.pt",
)
@options.model_argument
@options.weights
@options.images("Folder of images.")
@click.option(
    "--labels",
    metavar="DIR",
    shell_complete=completion.folders,
    help="Folder of labels with the images' names: PNG of indices, VOC colours, masks, depth in 16 bits; .npy; .flo.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    default="auto",
    show_default=True,
    help="What to choose by. auto: miou of labels, iou of masks or one class, rmse of depth, epe of flow.",
)
@click.option("--class", "class_index", type=click.IntRange(min=0), help="The class to look at alone, or of masks.")
@click.option("--ignore", type=int, default=255, show_default=True, help="The label of pixels that do not count.")
@click.option(
    "--unit",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="What depth or flow in files is divided by, such as 1000 for millimetres.",
)
@options.image_options(options.limit())
@options.writes(
    "What to write: .safetensors, .pt or .pth; and a page with pictures beside it, .html.", required=False
)
def search(
    model: str,
    weights: str | None,
    images: str,
    labels: str | None,
    metric: str,
    class_index: int | None,
    ignore: int,
    unit: float,
    prepared: options.ImageOptions,
    path: str | None,
    as_json: bool,
) -> None:
    """Try guided enlargements on labelled images, without training, and say whether one helps.

    Without labels it says what they change, and where, and chooses nothing.
    """
    parsed = names.parse(model)
    if weights is None and not (parsed.brings_weights or parsed.is_saved or parsed.is_factory):
        raise click.UsageError("Missing option '--weights': without them the network is untrained.")
    if labels is None and path is not None:
        raise click.UsageError("-o is for the swap that is chosen, which needs labels: give --labels as well.")
    if labels is not None and path is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    page = None if path is None else str(Path(path).with_suffix(".html"))
    if path is not None and page is not None:
        destinations.check_checkpoint(path)
        destinations.check_report(page)
        early.check_other_file(path, weights)
    early.check(network=model, checkpoint=weights, images=images)
    if labels is not None:
        pairs.find(images, labels, prepared.limit)

    from hotswap.cli import inputs
    from hotswap.zoo import providers

    model = inputs.pinned(model)
    network = inputs.build(model)
    weights = weights or providers.weights(model)
    if weights is not None:
        inputs.load_plain_weights(network, weights)
    if labels is None or path is None:
        with inputs.explained(network, prepared.input_size):
            _preview(network, images, prepared, as_json=as_json)
        return
    from hotswap.searching.api import search as search_swaps

    so_far = f"{path}.search"
    if is_there(so_far):
        output.note(f"going on from {so_far}, if it was measured for the same search")
    try:
        with inputs.explained(network, prepared.input_size):
            result = search_swaps(
                network,
                images,
                labels=labels,
                metric=metric,
                class_index=class_index,
                ignore=ignore,
                unit=unit,
                **vars(prepared),
                page=page,
                resume=so_far,
                progress=output.with_progress,
            )
    except KeyboardInterrupt:
        if is_there(so_far):
            output.note(f"the same command goes on from what was measured, in {so_far}")
        raise
    if result.network is not None:
        from hotswap.checkpoint.write import save

        save(result.network, path, inputs.recordable(model))
        output.wrote(path)
    else:
        output.note(f"{path} is not written, as the network is better left as it is")
    output.wrote(str(page))
    output.show(result, as_json=as_json, output=None if result.network is None else path, page=page)


def _preview(network: "nn.Module", images: str, prepared: options.ImageOptions, *, as_json: bool) -> None:
    from hotswap.searching.preview import preview

    output.show(preview(network, images, **vars(prepared), progress=output.with_progress), as_json=as_json)


COMMANDS: tuple[click.Command, ...] = (search,)
