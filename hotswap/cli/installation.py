"""Commands about the installation: doctor."""

import click

from hotswap.cli import options, output
from hotswap.errors import HotswapError


@options.command("hotswap doctor", "hotswap doctor --json")
def doctor(as_json: bool) -> None:
    """Show versions, which backends can run and why not, and test every operator, in seconds."""
    from hotswap.doctor import doctor as look_over

    with output.busy("testing the operators"):
        diagnosis = look_over()
    output.show(diagnosis, as_json=as_json)
    if not diagnosis.healthy:
        raise HotswapError("some operators fail here, or compute something else than they should")


COMMANDS: tuple[click.Command, ...] = (doctor,)
