"""The Triton kernels compiled for sm_90, without a GPU: what they take, and what that allows on an H200.

    python -m benchmarks.sm90 [--output FILE]

A row is one kernel of one call: registers, spills and shared memory from the binary, the instructions of its longest
loop, and two times below which no kernel can be, by rates measured on an H200: bytes over bandwidth, and operations
over the matrix units' rate.
"""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found"

import collections
import csv
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import triton

from benchmarks.stubbed import compiling
from pac_ops.backends import choose
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Window

TABLE = Path(__file__).parent / "results" / "sm90.csv"
BANDWIDTH = 4.3e12  # bytes a second, of a large copy
RATE = {torch.bfloat16: 7.8e14, torch.float32: 3.9e14}  # operations a second, of a large product; float32 as TF32
SPILLS = ("LDL", "STL")
MATRIX = ("HGMMA", "HMMA")


@dataclass(frozen=True)
class Call:
    """One call of the backend: its name, its shape, and how to make it."""

    name: str
    shape: str
    dtype: torch.dtype
    last: bool
    run: Callable[[], Any]
    operations: float
    moved: float  # bytes, each tensor once


@dataclass(frozen=True)
class Row:
    """What the compiler made of one kernel."""

    call: str
    shape: str
    dtype: str
    layout: str
    kernel: str
    tile: str
    programs: int
    registers: int
    spilled: int  # instructions that move registers to memory and back
    shared: int  # bytes
    matrix: int  # instructions of the matrix units, in the longest loop
    others: int  # in that loop
    moved_mib: float
    bytes_us: float
    operations_us: float
    triton: str


def calls() -> Iterator[Call]:
    """The kernels, at the shapes of the benchmarks."""
    for dtype, last in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, False)):
        for batch, channels, size in ((1, 64, 256), (1, 256, 64), (8, 256, 128)):
            yield from _convolution(batch, channels, size, dtype, last=last)
    for size in (64, 128):
        yield _distances(128, size)
    yield _enlargement(21)


def _image(shape: Sequence[int], dtype: torch.dtype, *, last: bool) -> torch.Tensor:
    x = torch.empty(tuple(shape), dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _convolution(batch: int, channels: int, size: int, dtype: torch.dtype, *, last: bool) -> Iterator[Call]:
    backend, window = choose.load("triton"), Window((3, 3), padding=(1, 1))
    image = (batch, channels, size, size)
    x, grad = (_image(image, dtype, last=last) for _ in range(2))
    weight = _image((channels, channels, 3, 3), dtype, last=last)
    kernel, bias = torch.empty(batch, 1, 3, 3, size, size), torch.empty(channels, dtype=dtype)
    operations = 2.0 * batch * channels**2 * 9 * size**2
    moved = 2 * x.nbytes + weight.nbytes + kernel.nbytes
    shape = f"b{batch}-c{channels}-{size}x{size}-k3"

    def backward(needs: tuple[bool, bool, bool]) -> Any:
        return backend.pacconv2d_backward(grad, x, kernel, weight, window, 1, needs)

    forward = partial(backend.pacconv2d, x, kernel, weight, bias, window, 1)
    yield Call("pacconv2d", shape, dtype, last, forward, operations, moved)
    both = partial(backward, (True, True, False))
    yield Call("gradients of input and K", shape, dtype, last, both, operations, moved + x.nbytes + kernel.nbytes)
    yield Call(
        "gradient of the weight", shape, dtype, last, partial(backward, (False, False, True)), operations, moved
    )


def _distances(channels: int, size: int) -> Call:
    guide = _image((1, channels, size, size), torch.bfloat16, last=True)
    run = partial(choose.load("triton").gaussian_kernel2d, guide, Window((3, 3), padding=(1, 1)))
    return Call(
        "gaussian_kernel2d",
        f"c{channels}-{size}x{size}-k3",
        guide.dtype,
        True,
        run,
        0.0,
        guide.nbytes + 36.0 * size**2,
    )


def _enlargement(channels: int) -> Call:
    scores, image = torch.empty(1, channels, 64, 64), torch.empty(1, 3, 512, 512)
    coarse, where = torch.empty(1, 3, 64, 64), Enlargement(None, False, 2)
    run = partial(choose.load("triton").guided_resize2d, scores, image, coarse, where, 1.0, False)
    moved = scores.nbytes + image.nbytes + coarse.nbytes + 4.0 * channels * 512**2
    return Call("pacresize2d", f"c{channels}-64to512-g3", torch.float32, False, run, 0.0, moved)


def rows(call: Call) -> Iterator[Row]:
    """Compile the kernels of a call."""
    with compiling() as kernels:
        call.run()
    for kernel, grid, meta in kernels:
        registers, code = _binary(kernel.asm["cubin"])
        loop, spilled = _longest_loop(code)
        matrix = sum(loop[name] for name in MATRIX)
        blocks = [str(value) for name, value in meta.items() if name.startswith("BLOCK")]
        yield Row(
            call.name,
            call.shape,
            str(call.dtype).removeprefix("torch."),
            "channels-last" if call.last else "contiguous",
            kernel.metadata.name.strip("_"),
            f"{' x '.join(blocks)}, {kernel.metadata.num_warps} warps, {kernel.metadata.num_stages} stages",
            grid[0] * grid[1] * grid[2],
            registers,
            spilled,
            kernel.metadata.shared,
            matrix,
            sum(loop.values()) - matrix,
            round(call.moved / 2**20, 2),
            round(call.moved / BANDWIDTH * 1e6, 2),
            round(call.operations / RATE[call.dtype] * 1e6, 2),
            triton.__version__,
        )


def _binary(cubin: bytes) -> tuple[int, str]:
    """Registers of a thread, and the assembly."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        used, code = (
            subprocess.run([tools / tool, *options, file.name], capture_output=True, text=True, check=True).stdout  # noqa: S603
            for tool, options in (("cuobjdump", ["--dump-resource-usage"]), ("nvdisasm", ["-c"]))
        )
    registers = re.search(r"REG:(\d+)", used)
    assert registers is not None
    return int(registers[1]), code


def _longest_loop(code: str) -> tuple[collections.Counter[str], int]:
    """How often each instruction stands in the longest innermost loop, and how many spill in all."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line.strip()):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)(.*?);", line):
            instructions.append((found[1].split(".")[0], found[2]))
    loops = []
    for end, (name, operands) in enumerate(instructions):
        target = re.search(r"(\.L_x_\d+)", operands) if name == "BRA" else None
        if target and labels.get(target[1], end + 1) < end - 5:
            loops.append((labels[target[1]], end))
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    start, end = max(innermost, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    loop = collections.Counter(name for name, _ in instructions[start : end + 1])
    return loop, sum(name in SPILLS for name, _ in instructions)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=TABLE, help="CSV to write.")
def main(output: Path) -> None:
    """Compile all, and write the table."""
    torch.backends.cudnn.allow_tf32 = True
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
        writer.writeheader()
        for call in calls():
            for row in rows(call):
                writer.writerow(asdict(row))
                click.echo(
                    f"{row.call}, {row.shape}, {row.dtype}, {row.layout}: {row.tile}; {row.registers} registers, "
                    f"{row.spilled} spilled, {row.shared} bytes, {row.matrix} matrix and {row.others} others a step, "
                    f"{row.programs} programs"
                )
                file.flush()


if __name__ == "__main__":
    main()
