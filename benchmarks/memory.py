"""Peak memory of `hotswap convert` on large weights: python -m benchmarks.memory [MEGABYTES].

The network is a stack of wide convolutions. The peak is that of the process (VmHWM), less what it has taken when all
imports are done.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hotswap.checkpoint.metadata import Metadata
from hotswap.checkpoint.read import read
from hotswap.checkpoint.write import write

WIDTH = 1024
KINDS = ("float32", "float16", "parts", "pt")
_RUN = """
import sys
import torch, timm, torchvision, transformers, safetensors.torch
import hotswap.cli.inputs, hotswap.api
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
hotswap.cli.main(sys.argv[1:], standalone_mode=False)
print(before, peak())
"""


@dataclass(frozen=True)
class Measured:
    """Bytes."""

    weights: int
    imports: int
    peak: int

    @property
    def times(self) -> float:
        """The peak above the imports, in sizes of the weights."""
        return (self.peak - self.imports) / self.weights


def network(layers: int, dtype: str = "float32") -> nn.Module:
    """About 38 MB a layer in float32."""
    kind = {"dtype": getattr(torch, dtype)}
    body = [layer for _ in range(layers) for layer in (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, **kind), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1, **kind), nn.ReLU(), *body)


def measured(folder: Path, kind: str, megabytes: int) -> Measured:
    """Convert weights of about so much in a process of its own; of `kind`, see KINDS, they are read and written."""
    dtype = "float16" if kind == "float16" else "float32"
    layers = max(2, round(megabytes * 1e6 / (WIDTH * WIDTH * 9 * (2 if kind == "float16" else 4))))
    weights = network(layers, dtype).state_dict()
    suffix = ".pt" if kind == "pt" else ".safetensors"
    parts = "200MB" if kind == "parts" else None
    write(weights, folder / f"weights{suffix}", Metadata(), parts)
    command = [
        "convert",
        f"benchmarks.memory:network?layers={layers}&dtype={dtype}",
        "--weights",
        folder / f"weights{suffix}",
    ]
    command += ["--target", f"{2 * layers}", "--guide", "0", "--input-size", "16", "-o", folder / f"out{suffix}"]
    command += ["--max-shard-size", parts] if parts else []
    done = subprocess.run(  # noqa: S603 (this very file's code)
        [sys.executable, "-c", _RUN, *map(str, command)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    before, peak = map(int, done.stdout.splitlines()[-1].split())
    written = read(folder / f"out{suffix}").state_dict
    assert all(torch.equal(written[name], x) for name, x in weights.items())
    return Measured(sum(x.nbytes for x in weights.values()), before, peak)


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for name in KINDS:
        with tempfile.TemporaryDirectory() as place:
            found = measured(Path(place), name, size)
        print(
            f"{name:8} weights {found.weights / 1e6:.0f} MB, imports {found.imports / 1e6:.0f} MB, peak "
            f"{found.peak / 1e6:.0f} MB: {found.times:.2f} times the weights above the imports"
        )
