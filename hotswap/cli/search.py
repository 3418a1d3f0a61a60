"""The command that says whether a swap helps: search."""

import os

import click

from hotswap.choices import METRICS
from hotswap.cli import completion, early, options, output
from hotswap.files import destinations
from hotswap.zoo import names


@click.command(
    epilog=options.examples(
        "hotswap search torchvision:deeplabv3_resnet50 --weights trained.pth --images photos --labels labels \\",
        "    -o best.safetensors",
        "hotswap search mypackage.nets:segmenter --images photos --labels masks --class 13 -o best.safetensors",
        "hotswap search mypackage.nets:depth --images photos --labels depth --unit 1000 --metric rmse -o best.pt",
    )
)
@options.model_argument
@options.weights
@options.images("Folder of images.")
@click.option(
    "--labels",
    metavar="DIR",
    required=True,
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
@options.output
@options.as_json
def search(
    model: str,
    weights: str | None,
    images: str,
    labels: str,
    metric: str,
    class_index: int | None,
    ignore: int,
    unit: float,
    prepared: options.ImageOptions,
    path: str,
    as_json: bool,
) -> None:
    """Try guided enlargements on labelled images, without training, and say whether one helps."""
    parsed = names.parse(model)
    if weights is None and not (parsed.brings_weights or parsed.is_saved or parsed.is_factory):
        raise click.UsageError("Missing option '--weights': without them the network is untrained.")
    destinations.check_checkpoint(path)
    early.check_other_file(path, weights)
    early.check_network(model)
    early.check_checkpoint(weights)
    early.check_images(images)

    from hotswap.checkpoint.write import save
    from hotswap.cli import inputs
    from hotswap.searching.api import search as search_swaps
    from hotswap.zoo import providers

    model = inputs.pinned(model)
    network = inputs.build(model)
    weights = weights or providers.weights(model)
    if weights is not None:
        inputs.load_plain_weights(network, weights)
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
            resume=f"{path}.search",
            progress=output.with_progress,
        )
    if result.network is not None:
        save(result.network, path, inputs.recordable(model))
    output.show(result, as_json=as_json, output=None if result.network is None else os.fspath(path))
    if result.network is None:
        output.note(f"{path} is not written, as the network is better left as it is")
    else:
        output.wrote(path)


COMMANDS: tuple[click.Command, ...] = (search,)
