"""What commands print: results on stdout, everything else on stderr."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import click

Item = TypeVar("Item")


class Result(Protocol):
    """What the library's verbs return."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...


def printable(text: str) -> str:
    """Text that came from a file or a network, without characters that would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def show(result: Result, *, as_json: bool, **more: Any) -> None:
    """Print a result: a table, or with `as_json` JSON, with further entries `more`."""
    if as_json:
        click.echo(json.dumps(result.to_dict() | more, indent=2))
    else:
        click.echo(printable(str(result)))


def note(text: str) -> None:
    """Tell something that is no result."""
    click.echo(printable(f"note: {text}"), err=True)


def wrote(path: str) -> None:
    """Tell that a file is there now."""
    click.echo(printable(f"wrote {path}"), err=True)


def with_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The same items, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, total=total, console=console, disable=not console.is_terminal, transient=True)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Around work of unknown length: show on stderr that it goes on, where that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
