"""The command line: thin click commands that parse, call the library and print.

Nothing here imports torch until a command runs, so that help and completion come at once.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

import hotswap
from hotswap.cli import checkpoints, enlarging, installation, networks, search
from hotswap.cli.options import examples
from hotswap.cli.output import printable
from hotswap.errors import HotswapError

COMMANDS_OF_OTHERS = "hotswap.commands"  # the entry points by which packages above this one add commands


class _Group(click.Group):
    """Turns a HotswapError into one line on stderr and exit code 1, and loads commands of other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_others()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in (others := _others()):
            command = others[cmd_name].load()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands with the whole first sentence of their help, which click would cut short."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in commands if command])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HotswapError as error:
            raise click.ClickException(printable(" ".join(str(error).split()))) from error


def _others() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=COMMANDS_OF_OTHERS)}


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "hotswap inspect torchvision:vgg16",
        "hotswap convert torchvision:vgg16 --weights vgg16.pth -o swapped.safetensors",
        "hotswap search mypackage.nets:segmenter --images photos --labels labels -o best.safetensors",
        "hotswap calibrate swapped.safetensors --images photos -o calibrated.safetensors",
        "hotswap verify calibrated.safetensors --images photos",
        "hotswap report calibrated.safetensors --images photos -o report.html",
        "hotswap revert calibrated.safetensors -o plain.safetensors",
        "hotswap export calibrated.safetensors -o network.onnx",
        "hotswap push calibrated.safetensors owner/name",
        "hotswap enlarge labels.png photo.jpg -o sharper.png",
    ),
)
@click.version_option(hotswap.__version__, prog_name="hotswap")
def main() -> None:
    """Swap convolutions of a trained network for pixel-adaptive ones, weights kept.

    A MODEL is torchvision:NAME, timm:NAME, smp:NAME, or package.module:factory for a function of your own that
    returns a network; options follow as ?key=value&key=value, e.g. "torchvision:fcn_resnet50?num_classes=21".
    Without an option that asks for pretrained weights, nothing is downloaded. Saved models are hf:OWNER/NAME and
    timm:hf-hub:OWNER/NAME on the hub, and folders with config.json and model.safetensors: convert takes their
    weights.

    Every command takes --quiet: then it prints errors alone, and with --json the JSON.

    Exit code: 0 done, 1 it could not be done (one line says why) or was stopped by Ctrl-C, 2 wrong usage.
    """


for module in (networks, search, checkpoints, enlarging, installation):
    for command in module.COMMANDS:
        main.add_command(command)
