"""What guiding adds to a whole network's time: `python -m benchmarks.real.cost`."""

import copy
import datetime as dt
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import nn

import hotswap
from benchmarks.harness import commit, processor
from benchmarks.real.networks import NETWORKS
from benchmarks.real.rows import write
from benchmarks.real.scores import PAIRS, deeplab
from hotswap.errors import HotswapError
from hotswap.versions import installed

RESULTS = Path(__file__).parents[1] / "results" / "real_cost.csv"


@dataclass(frozen=True)
class Cost:
    """A network before and after the default swap, one image at a time on one thread."""

    pair: str
    size: str
    plain_ms: float  # of processor time, the fastest of some runs in turn
    guided_ms: float
    date: str
    commit: str
    versions: str
    processor: str
    command: str

    @property
    def percent(self) -> float:
        """What guiding adds."""
        return 100 * (self.guided_ms / self.plain_ms - 1)


@click.command()
@click.option("--rounds", type=int, default=25, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="CSV, written anew.")
def main(rounds: int, output: Path) -> None:
    """Time each network of the comparison, plain and swapped. The weights do not matter, so they are untrained."""
    torch.set_num_threads(1)
    networks: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {"horses": (deeplab, (257, 257))}
    networks |= {f"camvid_{name}": (make, (360, 480)) for name, make in NETWORKS.items()}
    rows = []
    try:
        for pair in PAIRS:
            make, size = networks[pair]
            plain, guided = _times(make().eval(), size, rounds)
            rows.append(
                Cost(
                    pair=pair,
                    size="x".join(map(str, size)),
                    plain_ms=round(plain, 2),
                    guided_ms=round(guided, 2),
                    date=dt.datetime.now(dt.UTC).date().isoformat(),
                    commit=commit(),
                    versions=" ".join(f"{k}={v}" for k, v in installed(("torch",)).items()),
                    processor=processor(),
                    command="python -m benchmarks.real.cost",
                )
            )
            click.echo(f"{pair}: {plain:.1f} ms, guided {guided:.1f} ms, {rows[-1].percent:+.1f} %")
    except HotswapError as error:
        raise click.ClickException(str(error)) from error
    write(rows, output)


@torch.no_grad()
def _times(network: nn.Module, size: tuple[int, int], rounds: int) -> tuple[float, float]:
    torch.manual_seed(0)
    image = torch.randn(1, 3, *size)
    swapped = hotswap.convert(copy.deepcopy(network), "resize", "input", calibrate_on=[image], example_inputs=image)
    least = [math.inf, math.inf]
    for _ in range(rounds):
        for index, model in enumerate((network, swapped)):
            start = time.process_time()
            model(image)
            least[index] = min(least[index], 1000 * (time.process_time() - start))
    return least[0], least[1]


if __name__ == "__main__":
    main()
