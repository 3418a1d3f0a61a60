"""What guiding adds to a whole network's time: `python -m benchmarks.real.cost`."""

import copy
import datetime as dt
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

import hotswap
from benchmarks.harness import commit, processor
from benchmarks.real.networks import NETWORKS
from benchmarks.real.rows import write
from benchmarks.real.scores import deeplab
from hotswap.errors import HotswapError
from hotswap.versions import installed

RESULTS = Path(__file__).parents[1] / "results" / "real_cost.csv"


@dataclass(frozen=True)
class Cost:
    """A network before and after the default swap, one image at a time on one thread."""

    pair: str
    size: str
    plain_ms: float  # of processor time, the fastest of some rounds
    guided_ms: float  # that times the median over rounds of the ratio, as a machine's speed changes from run to run
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
        for pair, (make, size) in networks.items():
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
    took = [(_ms(network, image), _ms(swapped, image)) for _ in range(rounds)]
    plain = min(each for each, _ in took)
    return plain, plain * statistics.median(guided / each for each, guided in took)


def _ms(model: nn.Module, image: Tensor) -> float:
    start = time.process_time()
    model(image)
    return 1000 * (time.process_time() - start)


if __name__ == "__main__":
    main()
