"""Output of commands: results on stdout, the rest on stderr; with --quiet only errors and JSON."""

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from hotswap.errors import HotswapError

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")
_QUIET = "hotswap.quiet"  # key of a context's meta


class Result(Protocol):
    """A result of the library."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...


def be_quiet(context: click.Context) -> None:
    """Print only errors and JSON until the command ends."""
    from hotswap.files.hub import NO_BARS

    context.meta[_QUIET] = True
    before = os.environ.get(NO_BARS)
    os.environ[NO_BARS] = "1"
    context.call_on_close(lambda: os.environ.pop(NO_BARS) if before is None else os.environ.update({NO_BARS: before}))


def is_quiet() -> bool:
    """Whether the running command has --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and context.meta.get(_QUIET, False)


def printable(text: str) -> str:
    """Text without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def show(result: Result, *, as_json: bool, **more: Any) -> None:
    """Print a result: a table, or with `as_json` JSON, with further entries `more`."""
    if as_json:
        show_json(result.to_dict() | more)
    else:
        say(str(result))


def show_json(content: Mapping[str, Any]) -> None:
    """Print JSON on stdout."""
    _print(json.dumps(content, indent=2))


def say(text: str) -> None:
    """Print text on stdout, unless --quiet is given."""
    if not is_quiet():
        _print(printable(text))


def note(text: str) -> None:
    """Print a note on stderr, in one line."""
    _tell(f"note: {text}")


def wrote(path: str) -> None:
    """Print that a file was written."""
    _tell(f"wrote {path}")


def _tell(text: str) -> None:
    if not is_quiet():
        click.echo(printable(text.replace("\n", "?")), err=True)


def _print(text: str) -> None:
    try:
        click.echo(text)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader has closed the pipe; click ends the command
            raise
        # Python would try to write the rest again at exit, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise HotswapError(f"cannot write to stdout: {error.strerror}") from error


def with_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Iterate over items, with a progress bar if stderr is a terminal."""
    from rich.progress import track

    console = _watched()
    if console is None:  # asked first, as rich before 14.3 writes an empty line for a bar that is disabled
        yield from items
        return
    yield from track(items, what, total=total, console=console, transient=True)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A spinner around work of unknown length, if stderr is a terminal."""
    console = _watched()
    if console is None:
        yield
        return
    with console.status(what):
        yield


def _watched() -> "Console | None":
    """The console on stderr; None if stderr is no terminal or --quiet is given."""
    from rich.console import Console

    console = Console(stderr=True)
    return None if is_quiet() or not console.is_terminal else console
