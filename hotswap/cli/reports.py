"""Commands that present a network: report."""

import click

from hotswap.choices import OUTPUTS
from hotswap.cli import early, options, output
from hotswap.files import destinations


@click.command(
    epilog=options.examples(
        "hotswap report swapped.safetensors --images photos -o report.html",
        "hotswap report swapped.pt --model mypackage.nets:segmenter --images photos --input-size 320x480 \\",
        "    --limit 4 -o report.html",
    )
)
@options.checkpoint_argument
@options.images("Folder of images to show the network on.")
@options.writes("What to write: .html.")
@options.own_model
@options.image_options(options.limit(6, "Show"))
@click.option(
    "--outputs",
    type=click.Choice(OUTPUTS),
    default="auto",
    show_default=True,
    help="How output maps are drawn: the label that is highest (of one channel, whether it is above 0), or numbers. "
    "auto: one channel as numbers, three as a picture, any other number as labels.",
)
@options.as_json
def report(
    checkpoint: str,
    images: str,
    path: str,
    model: str | None,
    prepared: options.ImageOptions,
    outputs: str,
    as_json: bool,
) -> None:
    """Write one HTML file about a swapped network: what is swapped, what it changes, what it costs."""
    early.check_other_file(path, checkpoint)
    destinations.check_report(path)
    early.check_checkpoint(checkpoint)
    early.check_network(model)
    early.check_images(images)

    from hotswap.cli import inputs
    from hotswap.reporting.api import report as write_report

    network = inputs.load(checkpoint, model, prepared.input_size).network
    with inputs.explained(network, prepared.input_size):
        result = write_report(
            network,
            images,
            path,
            **vars(prepared),
            outputs=outputs,
            checkpoint=checkpoint,
            architecture=model,
            progress=output.with_progress,
        )
    output.show(result, as_json=as_json)
    output.wrote(path)


COMMANDS: tuple[click.Command, ...] = (report,)
