"""Commands about a checkpoint of a swapped network: verify, calibrate, revert, export, diff."""

from dataclasses import replace
from typing import Any

import click

from hotswap.choices import EXPORTS
from hotswap.cli import completion, early, options, output
from hotswap.errors import HotswapError
from hotswap.files import destinations


@click.command(
    epilog=options.examples(
        "hotswap verify swapped.safetensors --images photos",
        "hotswap verify swapped.pt --model mypackage.nets:segmenter --input-size 320x480 --json",
        "hotswap verify hf-hub:owner/name --images photos",
    )
)
@options.checkpoint_argument
@options.images("Folder of images to run on. Default: random noise.", required=False)
@options.own_model
@options.image_options(options.limit())
@options.as_json
def verify(
    checkpoint: str,
    images: str | None,
    model: str | None,
    prepared: options.ImageOptions,
    as_json: bool,
) -> None:
    """Compare a swapped network with its plain self: outputs, and how far each kernel is from 1."""
    early.check_checkpoint(checkpoint)
    early.check_network(model)
    early.check_images(images)

    from hotswap.cli import inputs
    from hotswap.measure.verify import verify as verify_network

    network = inputs.load(checkpoint, model, prepared.input_size).network
    data = inputs.data(network, images, prepared, "verifying")
    output.note(f"compared on {data.description}")
    with inputs.explained(network, prepared.input_size):
        result = verify_network(network, data.batches)
    output.show(result, as_json=as_json, data=data.description)


@click.command(
    epilog=options.examples(
        "hotswap calibrate swapped.safetensors --images photos --deviation 0.3 -o calibrated.safetensors",
    )
)
@options.checkpoint_argument
@options.images("Folder of images such as the network will see.")
@options.deviation
@options.conserve
@options.output
@options.max_shard_size
@options.own_model
@options.image_options(options.limit())
@options.as_json
def calibrate(
    checkpoint: str,
    images: str,
    deviation: float | None,
    conserve: str | None,
    path: str,
    max_shard_size: str | None,
    model: str | None,
    prepared: options.ImageOptions,
    as_json: bool,
) -> None:
    """Choose each swap's guide scale from images, so that its kernel differs from 1 by a stated mean."""
    destinations.check_checkpoint(path, max_shard_size)
    early.check_checkpoint(checkpoint)
    early.check_network(model)
    early.check_images(images)
    early.check_other_file(path, checkpoint)

    from hotswap.checkpoint.write import save
    from hotswap.cli import inputs
    from hotswap.measure.calibrate import calibrate as calibrate_network

    loaded = inputs.load(checkpoint, model, prepared.input_size)
    data = inputs.data(loaded.network, images, prepared, "calibrating")
    wanted: dict[str, Any] = {} if deviation is None else {"deviation": deviation}
    if conserve is not None:
        wanted["conserve"] = options.conserved(conserve)
    with inputs.explained(loaded.network, prepared.input_size):
        result = calibrate_network(loaded.network, data.batches, **wanted)
    save(loaded.network, path, loaded.architecture, max_shard_size=max_shard_size)
    output.show(result, as_json=as_json, data=data.description, output=path)
    output.wrote(path)


@click.command(
    epilog=options.examples(
        "hotswap revert finetuned.safetensors -o plain.safetensors",
    )
)
@options.checkpoint_argument
@options.output
@options.max_shard_size
@options.as_json
def revert(checkpoint: str, path: str, max_shard_size: str | None, as_json: bool) -> None:
    """Write the plain network of a swapped checkpoint, with its weights as they are."""
    destinations.check_checkpoint(path, max_shard_size)
    early.check_checkpoint(checkpoint)
    early.check_other_file(path, checkpoint)

    from hotswap.checkpoint.read import read
    from hotswap.checkpoint.write import write

    saved = read(checkpoint)
    if saved.metadata is None or saved.metadata.plan is None:
        raise HotswapError(f"nothing in {checkpoint!r} is swapped, so there is nothing to revert")
    write(saved.state_dict, path, replace(saved.metadata, plan=None, learned_scales={}), max_shard_size)
    targets = tuple(entry.name for entry in saved.metadata.plan.entries)
    if as_json:
        output.show_json({"targets": targets, "output": path})
    else:
        output.say(f"reverted {len(targets)} swaps: {', '.join(targets)}")
    output.wrote(path)


@click.command(
    epilog=options.examples(
        "hotswap export swapped.safetensors -o swapped.onnx",
        "hotswap export swapped.safetensors --input-size 512x512 --static -o swapped.pt2",
    )
)
@options.checkpoint_argument
@options.writes("What to write: .onnx or .pt2.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(EXPORTS),
    help="What to write; an exported program is for torch.export.load. Default: by the file's name.",
)
@click.option("--static", is_flag=True, help="Fix batch and image size, where a network cannot leave them open.")
@options.own_model
@options.input_size
@options.as_json
def export(
    checkpoint: str,
    path: str,
    kind: str | None,
    static: bool,
    model: str | None,
    input_size: options.Size | None,
    as_json: bool,
) -> None:
    """Write the network for inference without hotswap, and check the file against PyTorch."""
    early.check_other_file(path, checkpoint)
    destinations.check_export(path, kind)
    early.check_checkpoint(checkpoint)
    early.check_network(model)

    from hotswap.cli import inputs
    from hotswap.exporting.export import export as export_network

    network = inputs.load(checkpoint, model, input_size).network
    example = inputs.example(network, input_size)
    with output.busy("exporting"):
        result = export_network(network, path, format=kind, example_inputs=example, dynamic=not static)
    output.show(result, as_json=as_json)
    output.wrote(path)


@click.command(
    epilog=options.examples(
        "hotswap diff swapped.safetensors finetuned.safetensors",
        "hotswap diff best.pt last.pt --json",
    )
)
@click.argument("first", shell_complete=completion.files)
@click.argument("second", shell_complete=completion.files)
@options.as_json
def diff(first: str, second: str, as_json: bool) -> None:
    """Compare two checkpoints: the architectures they name, their plans, their weights."""
    for path in (first, second):
        early.check_checkpoint(path)

    from hotswap.checkpoint.diff import diff as compare
    from hotswap.checkpoint.read import read

    saved = [read(path) for path in (first, second)]
    for name, checkpoint in zip((first, second), saved, strict=True):
        for text in checkpoint.notes:
            output.note(f"{name}: {text}")
    output.show(compare(*saved), as_json=as_json)


COMMANDS: tuple[click.Command, ...] = (verify, calibrate, revert, export, diff)
