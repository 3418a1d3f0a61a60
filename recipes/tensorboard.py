"""Curves for TensorBoard, where it is installed."""

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hotswap.errors import HotswapError

FOLDER = "tensorboard"


class Curves:
    """The curves of a run. Without TensorBoard, which is optional, nothing is written."""

    def __init__(self, folder: Path, board: Any = None) -> None:
        self.folder, self.board = folder, board

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        if self.board is not None:
            with _explained(self.folder):
                self.board.add_scalar(name, value, step)


@contextmanager
def curves(folder: Path, step: int, *, drawn: bool) -> Iterator[Curves]:
    """The curves of a run's folder, from a step on; `drawn` says whether this process writes them."""
    folder = folder / FOLDER
    if not drawn or importlib.util.find_spec("tensorboard") is None:
        yield Curves(folder)
        return
    from torch.utils.tensorboard import SummaryWriter

    with _without_the_threads_traceback():
        with _explained(folder):
            board = SummaryWriter(str(folder), purge_step=step + 1)
        try:
            yield Curves(folder, board)
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
