"""A trained network made sharper before any training, saved, loaded and reverted; the paper's swap in a picture.

    python -m examples.demo

No GPU, and no download. `make tour` shows the rest.
"""

import copy
import time
from pathlib import Path

import click

import hotswap
from examples.checks import console, save_load_revert, show
from examples.hed import load_hed
from examples.pictures import photograph
from examples.sharper import show_gain
from examples.tour import DEVIATION, GUIDE, PHOTOS, TARGETS, draw_kernels


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="out", help="Folder for the results."
)
def main(out: Path) -> None:
    """Show what hotswap is for, in about a minute."""
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)

    console.rule("[bold]1. What it is for: sharper, before any training")
    plain, guided, image, picture = show_gain(out, console)
    console.print(f"The picture, after {time.perf_counter() - began:.0f} s: {picture}", soft_wrap=True)

    console.rule("[bold]2. The same network: saved, loaded, reverted")
    written = [picture, save_load_revert(out, plain, guided, copy.deepcopy(plain), image)]

    console.rule("[bold]3. The paper's swap: convolutions that look at an activation before they add up a neighbour")
    name = next(iter(PHOTOS))
    photo = photograph(name)
    hed = hotswap.convert(load_hed(), TARGETS, GUIDE)
    show(hotswap.calibrate(hed, [photo], deviation=DEVIATION))
    written.append(draw_kernels(out, name, photo, hed))

    console.rule("[bold]Done")
    console.print(f"in {time.perf_counter() - began:.0f} s; written:")
    for path in written:
        console.print(f"  {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
