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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
import triton

from benchmarks.sm90_calls import Call, calls
from benchmarks.stubbed import compiling

__all__ = ["TABLE", "calls", "main", "rows"]

TABLE = Path(__file__).parent / "results" / "sm90.csv"
BANDWIDTH = 4.3e12  # bytes a second, of a large copy
RATE = {torch.bfloat16: 7.8e14, torch.float32: 3.9e14}  # operations a second, of a large product; float32 as TF32
SPILLS = ("LDL", "STL")
MATRIX = ("HGMMA", "HMMA")


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
    others: int  # in that loop; none where it was unrolled
    boxes: int  # instructions that fetch a box of a tensor (TMA), in the whole kernel
    moved_mib: float
    bytes_us: float
    operations_us: float
    triton: str


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
            kernel.asm["ptx"].count("cp.async.bulk.tensor"),
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
            start = labels[target[1]]
            if all(name != "EXIT" for name, _ in instructions[start:end]):  # else the way back from waiting, far away
                loops.append((start, end))
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
