"""The command that enlarges a map by its image: enlarge."""

from pathlib import Path

import click

from hotswap.choices import MAP_KINDS, SPACES
from hotswap.cli import completion, early, options, output
from hotswap.files import destinations
from hotswap.files.atomic import check_readable
from hotswap.network.names import AUTO


@options.command(
    "hotswap enlarge labels.png photo.jpg -o sharper.png",
    "hotswap enlarge logits.npy photo.jpg --labels -o labels.png",
    "hotswap enlarge depth16.png photo.jpg -o sharper.png",
)
@click.argument("map", shell_complete=completion.files)
@click.argument("image", shell_complete=completion.files)
@options.writes("What to write: .npy, or .png for labels and for depth in 16 bits.")
@click.option("--labels", is_flag=True, help="Write the class of each pixel instead of scores.")
@click.option(
    "--kind",
    type=click.Choice(MAP_KINDS),
    default=AUTO,
    show_default=True,
    help="What the map holds. auto: a picture of 16 bits and a floating [h, w] are depth, whole numbers labels, the "
    "rest scores.",
)
@click.option(
    "--scale",
    callback=options.number_or_auto,
    default=AUTO,
    metavar="NUMBER|auto",
    help="How strongly the image guides; 0 is plain bilinear. Default: auto, 12 in Lab and 8 in RGB.",
)
@click.option("--space", type=click.Choice(SPACES), default=AUTO, help="The colours that guide. Default: auto, lab.")
@click.option(
    "--footprint",
    callback=options.footprint,
    default=AUTO,
    metavar="auto|N[,N...]",
    help="Coarse pixels weighed along each axis: 2, 4, 6 or 8, or one for each step. Default: auto, by the factor.",
)
@click.option("--align-corners", is_flag=True, help="Corner pixels of map and image are at the same places.")
@click.option("--ignore", type=int, default=255, show_default=True, help="The label that is no class.")
@click.option("--stretched", is_flag=True, help="The map is of the image stretched to another aspect ratio.")
def enlarge(
    map: str,
    image: str,
    path: str,
    labels: bool,
    kind: str,
    scale: float | str,
    space: str,
    footprint: int | tuple[int, ...] | str,
    align_corners: bool,
    ignore: int,
    stretched: bool,
    as_json: bool,
) -> None:
    """Enlarge a MAP (scores, labels or depth) to the size of its IMAGE, its edges where the image has them."""
    destinations.check_map_name(map)
    destinations.check_map(path)
    check_readable(map)
    check_readable(image)
    early.check_other_file(path, map, image)

    from hotswap.enlarging import api, files
    from hotswap.zoo import images

    with output.busy("enlarging"):
        result = api.enlarged(
            files.read(map),
            images.read(Path(image)),
            kind=kind,
            labels=labels,
            scale=scale,
            space=space,
            footprint=footprint,
            align_corners=align_corners,
            ignore=ignore,
            stretched=stretched,
        )
        files.write(path, result.map)
    output.wrote(path)
    if as_json:
        output.show_json({"map": map, "image": image, "output": path} | result.to_dict())


COMMANDS: tuple[click.Command, ...] = (enlarge,)
