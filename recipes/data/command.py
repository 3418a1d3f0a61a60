"""`hotswap data`: commands about data sets. Nothing here imports torch until a command runs."""

import click

from hotswap.cli import options, output
from hotswap.errors import HotswapError
from hotswap.files.atomic import is_folder
from recipes import dependencies

NAMES = ("voc", "nyu", "sintel")


@click.group(epilog=options.examples("hotswap data check voc /data/voc"))
def data() -> None:
    """Data sets of the recipes."""


@options.command("hotswap data check voc /data/voc", "hotswap data check nyu /data/nyu --json")
@click.argument("name", type=click.Choice(NAMES))
@click.argument("root", type=click.Path())
def check(name: str, root: str, as_json: bool) -> None:
    """Read every file of a data set, and tell what is missing or damaged.

    Exit code: 0 everything is there, 1 something is not.
    """
    dependencies.check_installed()
    if not is_folder(root):
        raise HotswapError(f"{name}: there is no folder {root!r}; name the one that the data set lies in")
    from recipes.data.check import check as look_over

    report = look_over(name, root, output.with_progress)
    output.show(report, as_json=as_json)
    if report.problems:
        count = len(report.problems)
        raise HotswapError(f"{count} problem{'s'[: count > 1]} in {name}, the first: {report.problems[0]}")


data.add_command(check)
