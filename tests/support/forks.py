"""Processes of their own that start at once: forks of one that has imported everything and done nothing."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ["torchvision", "timm", "hotswap.cli", "hotswap.exporting.export", "recipes.comparison"]


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Call a function in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    running = context.Process(target=_call, args=(function, arguments))
    running.start()
    return running


def both(function: Callable[..., Any], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in two processes at once, rank 0 and 1, and see that both succeed."""
    running = [start(function, rank, *arguments) for rank in (0, 1)]
    for process in running:
        process.join()
        assert process.exitcode == 0


def run(function: Callable[..., Any], *arguments: Any, folder: Path) -> tuple[int, str, str]:
    """Call a function in a new process, in a folder: the exit code, and what it wrote to stdout and stderr."""
    logs = [folder.with_name(f"{folder.name}.{stream}") for stream in ("out", "err")]
    running = start(_written, function, arguments, folder, logs)
    running.join()
    out, errors = (log.read_text() for log in logs)
    return running.exitcode, out, errors


def _call(function, arguments):
    import torch

    torch.set_num_threads(1)  # two processes that each use all cores wait for each other
    function(*arguments)


def _written(function, arguments, folder, logs):
    for stream, log in zip((1, 2), logs, strict=True):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(folder)
    sys.path.insert(0, "")  # as for python -c
    function(*arguments)
