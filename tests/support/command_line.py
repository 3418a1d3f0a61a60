"""Commands of hotswap, run in this process."""

from pathlib import Path

import torch
from click.testing import CliRunner

from hotswap.cli import main

ROOT = Path(__file__).parents[2]
NET = "networks:Plain"
SWAP = ("--target", "target", "--guide", "guide")


def run(*args, code=0):
    """Run a command in this process; a traceback fails the test."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def error_of(result):
    """The one line that an error is."""
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
