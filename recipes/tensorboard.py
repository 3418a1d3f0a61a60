"""Curves for TensorBoard, where it is installed."""

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hotswap.errors import HotswapError

FOLDER = "tensorboard"


@contextmanager
def curves(folder: Path, step: int, *, drawn: bool) -> Iterator[Callable[[str, float, int], None]]:
    """The curves of a run's folder, from a step on: a function that adds a value to one, by its name, at a step.

    Without TensorBoard, which is optional, nothing is written; nor where not `drawn`, by other processes.
    """
    folder = folder / FOLDER
    if not drawn or importlib.util.find_spec("tensorboard") is None:
        yield lambda *_: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with _without_the_threads_traceback():
        with _explained(folder):
            board = SummaryWriter(str(folder), purge_step=step + 1)

        def add(name: str, value: float, step: int) -> None:
            with _explained(folder):
                board.add_scalar(name, value, step)

        try:
            yield add
        except BaseException:
            with suppress(OSError):  # what happened before is what matters
                board.close()
            raise
        with _explained(folder):
            board.close()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HotswapError(f"cannot write in {str(folder)!r}: {error.strerror or error}") from error


@contextmanager
def _without_the_threads_traceback() -> Iterator[None]:
    """Hide tracebacks of TensorBoard's writer thread. Its errors are raised here at the next write."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
