"""Options that several commands share, and the parsing of their values."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

from hotswap.choices import CONSERVE_MODES, FOOTPRINTS
from hotswap.cli import completion
from hotswap.cli import output as output_module
from hotswap.network.names import AUTO

NOTHING = "none"  # the command line's word for None
Command = TypeVar("Command", bound=Callable[..., Any])  # a function, or a click command
Decorator = Callable[[Callable[..., None]], Callable[..., None]]
Size = tuple[int | None, int, int]  # channels where stated, height, width


@dataclass(frozen=True)
class ImageOptions:
    """The user's choices for images; None means the network's own."""

    input_size: Size | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    limit: int  # of images


def examples(*lines: str) -> str:
    """The epilog of a command's help, with its lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _size(ctx: click.Context, param: click.Parameter, text: str | None) -> Size | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 3 or not all(re.fullmatch("[1-9][0-9]{0,5}", part) for part in parts):
        raise click.BadParameter(f"must be CxHxW, HxW or N in pixels, such as 3x224x224, got {text!r}")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        return None, numbers[0], numbers[0]
    return numbers[0] if len(numbers) == 3 else None, numbers[-2], numbers[-1]


def number_or_auto(ctx: click.Context, param: click.Parameter, text: str | None) -> float | str | None:
    """Parse a number or the word auto."""
    if text in (None, "auto"):
        return text
    try:
        number = float(text)
    except ValueError as error:
        raise click.BadParameter(f"must be a number or auto, got {text!r}") from error
    if not 0 <= number < math.inf:
        raise click.BadParameter(f"must be a number >= 0, got {text!r}")
    return number


def footprint(ctx: click.Context, param: click.Parameter, text: str | None) -> int | tuple[int, ...] | str | None:
    """Parse auto, a footprint, or one for each step with commas between them."""
    if text is None or text == AUTO:
        return text
    parts = text.split(",")
    if not all(part in map(str, FOOTPRINTS) for part in parts):
        choices = ", ".join(map(str, FOOTPRINTS))
        raise click.BadParameter(f"must be auto, one of {choices}, or one of these for each step, got {text!r}")
    return int(text) if len(parts) == 1 else tuple(map(int, parts))


def projection(ctx: click.Context, param: click.Parameter, text: str | None) -> int | tuple[int, int] | None:
    """Parse a number of channels, or one and a window with a comma between them."""
    if text is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,3}(,[13])?", text):
        raise click.BadParameter(f"must be a number of channels, or one and a window of 1 or 3: 8,3, got {text!r}")
    channels, _, window = text.partition(",")
    return int(channels), int(window or 1)


def kernel(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """Refuse what is no kernel's name, as far as this can be told without pac_ops."""
    if text is not None and text != "gaussian" and not text.startswith("inv_"):
        raise click.BadParameter(f"must be gaussian or inv_{{alpha}}_{{lambda}}[_asym]_fixed, got {text!r}")
    return text


def _numbers(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"must be numbers with commas between them, such as 0.5,0.5,0.5, got {text!r}"
        ) from error


def _positive(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    numbers = _numbers(ctx, param, text)
    if numbers is not None and not all(number > 0 for number in numbers):
        raise click.BadParameter(f"must be greater than 0, got {text!r}")
    return numbers


def _set_quiet(ctx: click.Context, param: click.Parameter, chosen: bool) -> None:
    if chosen:
        output_module.be_quiet(ctx)


_OF_ALL = (
    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, and nothing else, on stdout."),
    click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_set_quiet,
        help="Print nothing but errors and, with --json, the JSON.",
    ),
)


def command(*lines: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command with these examples in its help, which takes `--json` and `--quiet`, as all do."""

    def decorate(function: Callable[..., None]) -> click.Command:
        built = click.command(epilog=examples(*lines))(function)
        built.params += _OF_ALL
        return built

    return decorate


def images(text: str, *, required: bool = True) -> Callable[[Command], Command]:
    """The option `--images`, a folder."""
    return click.option("--images", metavar="DIR", required=required, shell_complete=completion.folders, help=text)


def writes(text: str, *, required: bool = True) -> Callable[[Command], Command]:
    """The option `--output`, a file."""
    return click.option(
        "-o", "--output", "path", required=required, metavar="FILE", shell_complete=completion.files, help=text
    )


no_check = click.option(
    "--no-check",
    "check",
    flag_value=False,
    default=True,
    help="Leave out the comparison of the swapped network, at guide scale 0, with the plain one.",
)
CHECKPOINT_FILES = "What to write: .safetensors, .pt or .pth."
model_argument = click.argument("model", shell_complete=completion.files)
checkpoint_argument = click.argument("checkpoint", shell_complete=completion.files)
output = writes(CHECKPOINT_FILES)
max_shard_size = click.option(
    "--max-shard-size",
    metavar="SIZE",
    help="Write weights above it in parts of at most so much, such as 5GB, with an index: .safetensors only.",
)
input_size = click.option(
    "--input-size",
    callback=_size,
    metavar="[[C]xH]xW",
    help="Size of the input: CxHxW, HxW or N. Default: the network's own, or 224.",
)
weights = click.option(
    "--weights",
    metavar="FILE",
    shell_complete=completion.files,
    help="The trained weights: .safetensors, .pt, .pth, .bin or .ckpt. Default: a saved model's own.",
)
own_model = click.option(
    "--model",
    metavar="MODEL",
    shell_complete=completion.files,
    help="The plain network, where the file does not name one of torchvision's or timm's.",
)
deviation = click.option(
    "--deviation",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="The mean of 1 - K to calibrate to, between 0 and 1. Default: 0.3 for convolutions, 0.5 for enlargements.",
)
conserve = click.option(
    "--conserve",
    type=click.Choice([*CONSERVE_MODES, NOTHING]),
    help="What makes up for K < 1: its mean at each tap on images, its sum over each window, or nothing, as in the "
    "paper. Default: mean where images are given.",
)
_mean = click.option(
    "--mean",
    metavar="NUMBERS",
    callback=_numbers,
    help="Mean of the images (in 0..1), one or per channel. Default: the network's own, or ImageNet's.",
)
_std = click.option(
    "--std", metavar="NUMBERS", callback=_positive, help="Standard deviation of the images, as --mean."
)


def limit(default: int = 100, what: str = "Use") -> Callable[[Command], Command]:
    """The option `--limit`, for images."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help=f"{what} at most so many images, evenly spread over the folder.",
    )


def image_options(limit: Decorator) -> Decorator:
    """The options `--input-size`, `--mean`, `--std` and `--limit`, passed to a command as one `ImageOptions`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**given: Any) -> None:
            prepared = ImageOptions(**{field.name: given.pop(field.name) for field in fields(ImageOptions)})
            command(prepared=prepared, **given)

        decorated: Callable[..., None] = call
        for option in (limit, _std, _mean, input_size):
            decorated = option(decorated)
        return decorated

    return decorate
