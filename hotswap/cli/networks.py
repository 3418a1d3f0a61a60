"""Commands about a network by its name: inspect, plan, convert."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from hotswap.choices import METHODS, RESIZE_MODES, SPACES
from hotswap.cli import completion, early, options, output
from hotswap.files import destinations
from hotswap.files.atomic import check_readable
from hotswap.zoo import names

if TYPE_CHECKING:
    from torch import nn

    from hotswap.targets.plan import Plan

# What to swap: options that `plan` and `convert` share, and hand to the library as they are.
_CHOICES: tuple[Callable[[options.Command], options.Command], ...] = (
    click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="NAME",
        help="A convolution to swap: a path, an alias such as conv3_3, a glob, or a regular expression after re:; "
        "or an enlargement to guide: an alias such as resize_2; resize, those of scores at the end; 'resize_*', all; "
        "or output_guided, the scores behind networks that end with learned layers. "
        "Repeat for more. Default: auto: resize where it takes any; else layers on scores of classes, to train; "
        "else paper, the last convolution of each of the last three stages.",
    ),
    click.option(
        "--guide",
        multiple=True,
        metavar="NAME",
        help="The module whose output steers the targets, by path or alias, or input, the image itself. Repeat for "
        "more, which then count as one. Default: auto: the image, for convolutions the second stage's last.",
    ),
    click.option(
        "--guide-scale",
        callback=options.number_or_auto,
        metavar="NUMBER|auto",
        help="What the guide is multiplied by. Default: auto with --calibrate-on, else the paper's 1e-4.",
    ),
    click.option(
        "--kernel",
        callback=options.kernel,
        metavar="NAME",
        help="gaussian (the default) or inv_{alpha}_{lambda}[_asym]_fixed.",
    ),
    options.conserve,
    click.option("--learn-scale", is_flag=True, default=None, help="Make each target's scale a trained parameter."),
    click.option(
        "--gate",
        type=click.IntRange(min=1),
        metavar="N",
        help="Learn how much of each convolution's K counts, from nothing on: one number a target, or N, for as many "
        "groups of its channels.",
    ),
    click.option("--resize", type=click.Choice(RESIZE_MODES), help="How the guide gets a target's size."),
    click.option(
        "--footprint",
        callback=options.footprint,
        metavar="auto|N[,N...]",
        help="Coarse pixels an enlargement weighs along each axis: 2, 4, 6 or 8, or one for each of its steps. "
        "Default: auto, 6,4,2 for a factor of 8.",
    ),
    click.option(
        "--space",
        type=click.Choice((*SPACES, options.NOTHING)),
        help="The colour space in which the image guides an enlargement; none leaves it as the network gets it. "
        "Default: auto, lab where it is known how images are normalised.",
    ),
    click.option(
        "--bounded/--not-bounded",
        default=None,
        help="Keep each pixel of an enlargement in the range of those it comes from. Default: for maps of 1 to 3 "
        "channels.",
    ),
    click.option(
        "--method",
        type=click.Choice(METHODS),
        help="How the guide reaches the targets: fx (rewritten code), hooks, or auto, fx where it works (default).",
    ),
    click.option(
        "--plan",
        "plan_file",
        metavar="FILE",
        shell_complete=completion.files,
        help="Carry out this plan (JSON, from `hotswap plan --json`).",
    ),
)


def _choices(command: options.Command) -> options.Command:
    for option in reversed(_CHOICES):
        command = option(command)
    return command


@options.command(
    "hotswap inspect torchvision:vgg16",
    'hotswap inspect "timm:resnet50d?num_classes=10" --input-size 320',
    "hotswap inspect mypackage.nets:segmenter --json",
)
@options.model_argument
@options.input_size
def inspect(model: str, input_size: options.Size | None, as_json: bool) -> None:
    """List a network's convolutions: alias, size, cost, and whether each can be swapped."""
    early.check(network=model)

    from hotswap.cli import inputs
    from hotswap.measure.inspect import inspect as inspect_network

    network = inputs.build(inputs.pinned(model))
    output.show(inspect_network(network, inputs.example(network, input_size)), as_json=as_json)


@options.command(
    "hotswap plan torchvision:vgg16",
    'hotswap plan torchvision:vgg16 --target conv3_3 --target "conv4_*" --guide conv2_2',
    "hotswap plan torchvision:vgg16 --json > plan.json",
)
@options.model_argument
@_choices
@options.input_size
@options.no_check
def plan(
    model: str, plan_file: str | None, input_size: options.Size | None, check: bool, as_json: bool, **chosen: Any
) -> None:
    """Show what `convert` would do, checked to the end, without doing it."""
    early.check(network=model)
    given = _given(chosen, plan_file)

    from hotswap.cli import inputs

    checked, _ = _carry_out(inputs.build(inputs.pinned(model)), plan_file, input_size, given, check)
    _show(checked, as_json)


@options.command(
    "hotswap convert torchvision:vgg16 --weights vgg16.pth --target conv3_3 --target conv4_3 \\",
    "    --guide conv2_2 -o swapped.safetensors",
    "hotswap convert ./my_segformer --guide input --calibrate-on photos -o swapped.safetensors",
    "hotswap convert torchvision:vgg16 --weights vgg16.pth --guide input --calibrate-on photos -o swapped.pt",
    "hotswap convert mypackage.nets:segmenter --weights best.ckpt --plan plan.json -o swapped.pt",
)
@options.model_argument
@options.weights
@_choices
@click.option(
    "--calibrate-on",
    metavar="DIR",
    shell_complete=completion.folders,
    help="Folder of images to calibrate on, as `hotswap calibrate` does.",
)
@click.option(
    "--projection",
    callback=options.projection,
    metavar="N[,3]",
    help="Learn a projection of each convolution's guide to N channels, of 1 x 1 or 3 x 3 pixels, from the guide's "
    "principal directions on --calibrate-on.",
)
@options.deviation
@options.image_options(options.limit())
@options.no_check
@click.option("--dry-run", is_flag=True, help="Do everything but write: print the plan, as `hotswap plan` does.")
@options.writes(options.CHECKPOINT_FILES, required=False)
@options.max_shard_size
def convert(
    model: str,
    weights: str | None,
    plan_file: str | None,
    calibrate_on: str | None,
    projection: int | tuple[int, int] | None,
    deviation: float | None,
    prepared: options.ImageOptions,
    check: bool,
    dry_run: bool,
    path: str | None,
    max_shard_size: str | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Swap convolutions of a trained network, and write it with its weights and the plan."""
    if deviation is not None and calibrate_on is None:
        raise click.UsageError("--deviation needs images: give --calibrate-on as well.")
    if projection is not None and calibrate_on is None:
        raise click.UsageError("--projection needs images: give --calibrate-on as well.")
    if plan_file is not None and calibrate_on is not None:
        raise click.UsageError("--plan says how strong the swaps are: `hotswap calibrate` the result instead.")
    given = _given(chosen, plan_file, calibrated=calibrate_on is not None)
    parsed = names.parse(model)
    if not dry_run:
        if path is None:
            raise click.UsageError("Missing option '-o' / '--output' (only --dry-run needs none).")
        if weights is None and not (parsed.brings_weights or parsed.is_saved):
            raise click.UsageError(
                "Missing option '--weights': without them the network is untrained (only --dry-run needs none)."
            )
        destinations.check_checkpoint(path, max_shard_size)
        early.check_other_file(path, weights, plan_file)
    early.check(network=model, checkpoint=weights, images=calibrate_on)

    from hotswap import api
    from hotswap.checkpoint.write import save
    from hotswap.cli import inputs
    from hotswap.surgery import install
    from hotswap.zoo import providers

    model = inputs.pinned(model)
    network = inputs.build(model)
    if weights is None and not (dry_run and calibrate_on is None):
        weights = providers.weights(model)
    if weights is not None:
        inputs.load_plain_weights(network, weights)
    if calibrate_on is None:
        done, converted = _carry_out(network, plan_file, prepared.input_size, given, check)
    else:
        data = inputs.data(network, calibrate_on, prepared, "calibrating")
        given |= {} if projection is None else {"projection": projection}
        given |= {"check": check} | ({} if deviation is None else {"deviation": deviation})
        with inputs.explained(network, prepared.input_size):
            example = inputs.example(network, prepared.input_size)
            converted = api.convert(network, **given, calibrate_on=data.batches, example_inputs=example, inplace=True)
        calibrated = install.current_plan(converted)
        assert calibrated is not None  # noqa: S101 (it was just converted)
        done = calibrated
    if dry_run or path is None:
        _show(done, as_json)
        return
    save(converted, path, inputs.recordable(model), max_shard_size=max_shard_size)
    output.show(done, as_json=as_json, output=path)
    output.wrote(path)


COMMANDS: tuple[click.Command, ...] = (inspect, plan, convert)


def _show(plan: "Plan", as_json: bool) -> None:
    output.show(plan, as_json=as_json, enlargements=[each.to_dict() for each in plan.enlargements])


def _carry_out(
    network: "nn.Module", plan_file: str | None, input_size: options.Size | None, given: dict[str, Any], check: bool
) -> "tuple[Plan, nn.Module]":
    from hotswap import api
    from hotswap.checkpoint.read import read_plan
    from hotswap.cli import inputs

    example = inputs.example(network, input_size)
    if plan_file is None:
        plan = api.plan(network, **given, example_inputs=example, check=check)
        check = False  # `plan` has compared it already
    else:
        plan = read_plan(plan_file)
    return plan, api.apply(network, plan, example_inputs=example, inplace=True, check=check)


def _given(chosen: dict[str, Any], plan_file: str | None, *, calibrated: bool = False) -> dict[str, Any]:
    """The options that were given, as the library's arguments; refuses those that exclude each other."""
    given = {name: value for name, value in chosen.items() if value not in (None, ())}
    if "guide" in given:
        given["guide"] = list(given["guide"])
    given |= {name: None for name in ("conserve", "space") if given.get(name) == options.NOTHING}
    for name, value in (("guide_scale", "auto"), ("conserve", "mean")):
        if given.get(name) == value and not calibrated:
            option = f"--{name.replace('_', '-')} {value}"
            raise click.UsageError(f"{option} is measured on images, which `hotswap convert --calibrate-on` takes.")
    if plan_file is not None:
        if given:
            raise click.UsageError("--plan says what to swap: leave out --target, --guide and the other choices.")
        check_readable(plan_file)
    return given
