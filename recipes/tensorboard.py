"""Curves for TensorBoard, where it is installed."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


@contextmanager
def writer(folder: Path, step: int) -> Iterator[Any]:
    """A SummaryWriter of a run's folder, from a step on, or None without TensorBoard: an extra, not a need."""
    if importlib.util.find_spec("tensorboard") is None:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder / FOLDER), purge_step=step + 1)
    try:
        yield board
    finally:
        board.close()
