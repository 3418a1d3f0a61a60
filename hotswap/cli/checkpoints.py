"""Commands about a checkpoint of a swapped network: verify, calibrate, revert, export, diff, report, push."""

from dataclasses import replace
from typing import Any

import click

from hotswap.choices import EXPORTS, OUTPUTS
from hotswap.cli import completion, early, options, output
from hotswap.errors import HotswapError
from hotswap.files import destinations, hub, shards


@options.command(
    "hotswap verify swapped.safetensors --images photos",
    "hotswap verify swapped.pt --model mypackage.nets:segmenter --input-size 320x480 --json",
    "hotswap verify hf-hub:owner/name --images photos",
)
@options.checkpoint_argument
@options.images("Folder of images to run on. Default: random noise.", required=False)
@options.own_model
@options.image_options(options.limit())
def verify(
    checkpoint: str,
    images: str | None,
    model: str | None,
    prepared: options.ImageOptions,
    as_json: bool,
) -> None:
    """Compare a swapped network with its plain self: outputs, and how far each kernel is from 1."""
    early.check(network=model, checkpoint=checkpoint, images=images)

    from hotswap.cli import inputs
    from hotswap.measure.verify import verify as verify_network

    network, _ = inputs.load(checkpoint, model, prepared.input_size)
    data = inputs.data(network, images, prepared, "verifying")
    output.note(f"compared on {data.description}")
    with inputs.explained(network, prepared.input_size):
        result = verify_network(network, data.batches)
    output.show(result, as_json=as_json, data=data.description)


@options.command(
    "hotswap calibrate swapped.safetensors --images photos --deviation 0.3 -o calibrated.safetensors",
)
@options.checkpoint_argument
@options.images("Folder of images such as the network will see.")
@options.deviation
@options.conserve
@options.output
@options.max_shard_size
@options.own_model
@options.image_options(options.limit())
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
    early.check(network=model, checkpoint=checkpoint, images=images)
    early.check_other_file(path, checkpoint)

    from hotswap.checkpoint.write import save
    from hotswap.cli import inputs
    from hotswap.measure.calibrate import calibrate as calibrate_network

    network, architecture = inputs.load(checkpoint, model, prepared.input_size)
    data = inputs.data(network, images, prepared, "calibrating")
    wanted: dict[str, Any] = {} if deviation is None else {"deviation": deviation}
    if conserve is not None:
        wanted["conserve"] = None if conserve == options.NOTHING else conserve
    with inputs.explained(network, prepared.input_size):
        result = calibrate_network(network, data.batches, **wanted)
    save(network, path, architecture, max_shard_size=max_shard_size)
    output.show(result, as_json=as_json, data=data.description, output=path)
    output.wrote(path)


@options.command(
    "hotswap revert finetuned.safetensors -o plain.safetensors",
)
@options.checkpoint_argument
@options.output
@options.max_shard_size
def revert(checkpoint: str, path: str, max_shard_size: str | None, as_json: bool) -> None:
    """Write the plain network of a swapped checkpoint, with its weights as they are."""
    destinations.check_checkpoint(path, max_shard_size)
    early.check(checkpoint=checkpoint)
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


@options.command(
    "hotswap export swapped.safetensors -o swapped.onnx",
    "hotswap export swapped.safetensors --input-size 512x512 --static -o swapped.pt2",
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
    early.check(network=model, checkpoint=checkpoint)

    from hotswap.cli import inputs
    from hotswap.exporting.export import export as export_network

    network, _ = inputs.load(checkpoint, model, input_size)
    example = inputs.example(network, input_size)
    with output.busy("exporting"):
        result = export_network(network, path, format=kind, example_inputs=example, dynamic=not static)
    output.show(result, as_json=as_json)
    output.wrote(path)


@options.command(
    "hotswap diff swapped.safetensors finetuned.safetensors",
    "hotswap diff best.pt last.pt --json",
)
@click.argument("first", shell_complete=completion.files)
@click.argument("second", shell_complete=completion.files)
def diff(first: str, second: str, as_json: bool) -> None:
    """Compare two checkpoints: the architectures they name, their plans, their weights."""
    for path in (first, second):
        early.check(checkpoint=path)

    from hotswap.checkpoint.diff import diff as compare
    from hotswap.checkpoint.read import read

    saved = [read(path) for path in (first, second)]
    for name, checkpoint in zip((first, second), saved, strict=True):
        for text in checkpoint.notes:
            output.note(f"{name}: {text}")
    output.show(compare(*saved), as_json=as_json)


@options.command(
    "hotswap report swapped.safetensors --images photos -o report.html",
    "hotswap report swapped.pt --model mypackage.nets:segmenter --images photos --input-size 320x480 \\",
    "    --limit 4 -o report.html",
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
    early.check(network=model, checkpoint=checkpoint, images=images)

    from hotswap.cli import inputs
    from hotswap.reporting.api import report as write_report

    network, _ = inputs.load(checkpoint, model, prepared.input_size)
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


@options.command(
    "hotswap push swapped.safetensors owner/name --private",
    "hotswap push swapped.pt owner/name --model mypackage.nets:segmenter --branch trial",
)
@options.checkpoint_argument
@click.argument("repository")
@click.option("--private", is_flag=True, default=None, help="If the repository is created, make it private.")
@click.option("--branch", metavar="NAME", help="Where to put it; created where there is none. Default: main.")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@options.max_shard_size
@options.own_model
def push(
    checkpoint: str,
    repository: str,
    private: bool | None,
    branch: str | None,
    message: str | None,
    max_shard_size: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Put a checkpoint's network on the Hugging Face hub, in REPOSITORY, OWNER/NAME, as one commit.

    It is loaded again as hf-hub:OWNER/NAME, by every command that takes a checkpoint. Needs a token that may write:
    `hf auth login`, or HF_TOKEN.
    """
    early.check(network=model, checkpoint=checkpoint)
    hub.parse(f"{hub.PREFIX}{repository}" + ("" if branch is None else f"@{branch}"))
    if max_shard_size is not None:
        shards.parse_size(max_shard_size)

    from hotswap.checkpoint.push import push_to_hub
    from hotswap.cli import inputs

    network, architecture = inputs.load(checkpoint, model)
    chosen = {"message": message, "max_shard_size": max_shard_size}
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    address = push_to_hub(network, repository, architecture=architecture, private=private, branch=branch, **given)
    if as_json:
        output.show_json({"address": address})  # with the commit
    else:
        output.say(address)


COMMANDS: tuple[click.Command, ...] = (verify, calibrate, revert, export, diff, report, push)
