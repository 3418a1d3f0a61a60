"""What demo and tour print, and what they demand of a swapped network."""

import copy
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

import hotswap

console = Console()


def show(result: object) -> None:
    """Print what a hotswap function returned, its columns intact however narrow the terminal."""
    console.out(str(result), highlight=False)


def check(passed: bool, what: str) -> None:
    """Print a check mark, or end with what failed."""
    if not passed:
        raise SystemExit(f"check failed: {what}")
    console.print(f"[green]✓[/] {what}")


def save_load_revert(out: Path, plain: nn.Module, swapped: nn.Module, fresh: nn.Module, image: Tensor) -> Path:
    """Take a swapped network through a file and back to a plain network, checking each.

    Args:
        out: the folder for the file.
        plain: the network before the swap.
        swapped: after it, and perhaps after training.
        fresh: one like the plain one, with any weights, to load the file into.
        image: what to compare outputs on.
    """
    with torch.no_grad():
        expected = swapped.eval()(image)

        path = out / "swapped.safetensors"
        hotswap.save(swapped, path)
        loaded = hotswap.load(path, model=fresh, example_inputs=image)
        check(torch.equal(loaded.eval()(image), expected), f"{path.name} loads, and gives the same output")

        check(loaded.state_dict().keys() == plain.state_dict().keys(), "its weights keep the plain network's names")
        unswapped = copy.deepcopy(plain)
        unswapped.load_state_dict(swapped.state_dict())
        reverted = hotswap.revert(loaded)
        check(hotswap.status(reverted).plan is None, "reverted, nothing is swapped")
        same = torch.equal(reverted.eval()(image), unswapped.eval()(image))
        check(same, "and it computes what the plain network computes with the same weights")
    return path
