"""`python -m benchmarks.report`: the kept rows as the tables and plots of docs/performance.md.

Of several measurements of one thing, the last counts. Tables replace what lies between `<!-- table: NAME -->` and
`<!-- end -->`; plots are written beside the page.
"""

import csv
import math
from pathlib import Path

import click
import matplotlib as mpl

from benchmarks import crf, exported, large, launching, limits, markdown, networks, operators, resizing, small
from benchmarks.harness import BOTH, FORWARD, RESULTS, geometric_mean
from benchmarks.rows import OURS, PAGE, Results, Row, faster_conv, faster_own, ms, peak, with_table

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

PLOTS = PAGE.parent / "performance"


def _in_table(results: Results, mode: str) -> list[tuple[str, dict[str, Row]]]:
    """The shapes of the table: workload and rows by backend."""
    wanted = {workload.id for workload in operators.TABLE}
    return [(workload, rows) for workload, rows in results.of("pacconv2d", mode) if workload in wanted]


def _means(results: Results, mode: str) -> tuple[float, float]:
    """Our time, and our peak of memory, of the faster convolution's: geometric means over the table of shapes."""
    pairs = [(faster_own(rows), faster_conv(rows)) for _, rows in _in_table(results, mode)]
    memory = geometric_mean([peak(own) / peak(conv) for own, conv in pairs])
    return geometric_mean([ms(own) / ms(conv) for own, conv in pairs]), memory


def layers(results: Results, mode: str) -> str:
    """Each shape: our time, the peers' over it, the limit, and how far we are from it."""
    products = max(results.rate(op, "operations") for op in (limits.PRODUCT, "pacconv2d"))
    moved = results.rate(limits.COPY, "least_bytes")
    table: list[list[str]] = []
    ratios: dict[str, list[float]] = {operators.UNFOLD: [], operators.DEFORM: []}
    for workload, rows in _in_table(results, mode):
        own, conv = faster_own(rows), faster_conv(rows)
        operations, moved_bytes = float(own["operations"]), float(own["least_bytes"])
        by_products, by_bytes = operations / products, moved_bytes / moved
        for name in ratios.keys() & rows.keys():
            ratios[name].append(ms(rows[name]) / ms(own))
        table.append(
            [
                workload + operators.LAST * own["backend"].endswith(operators.LAST),
                f"{ms(own):.1f}",
                f"{ms(own) / ms(conv):.2f}",
                *(
                    f"{ms(rows[name]) / ms(own):.1f}" if name in rows else ""
                    for name in (operators.UNFOLD, operators.DEFORM)
                ),
                f"{peak(own) / 2**20:.0f} ({peak(own) / peak(conv):.2f})",
                f"{operations / 1e9:.1f}",
                f"{moved_bytes / 2**20:.0f}",
                f"{max(by_products, by_bytes):.1f} ({'products' if by_products > by_bytes else 'bytes'})",
                f"{ms(own) / max(by_products, by_bytes):.2f}",
            ]
        )
    time, memory = _means(results, mode)
    peers = [f"{geometric_mean(values):.1f}" for values in ratios.values()]
    table.append(["geometric mean", "", f"{time:.2f}", *peers, f"({memory:.2f})", "", "", "", ""])
    return markdown.table(
        [
            "shape",
            "ms",
            "of conv's time",
            "unfold + einsum, of ours",
            "`deform_conv2d`, of ours",
            "peak MiB (of conv's)",
            "GFLOP",
            "least MiB moved",
            "limit, ms",
            "of the limit",
        ],
        table,
    )


def machines(every: list[Results]) -> str:
    """The figures that sum a machine up, a row each."""
    table = []
    for results in every:
        (forward, _), (both, memory) = _means(results, FORWARD), _means(results, BOTH)
        kernels = [ms(r["pac_ops"]) / ms(r[operators.CONV]) for _, r in results.of("packernel2d", FORWARD)]
        whole_networks = [
            ms(rows[networks.SWAPPED]) / ms(rows[networks.PLAIN])
            for mode in ("inference", "training step")
            for _, rows in results.of("FCN-8s", mode)
        ]
        table.append(
            [
                results.device,
                f"{forward:.2f}",
                f"{both:.2f}",
                f"{memory:.2f}",
                " / ".join(f"{100 * share:.1f}" for share in kernels) + " %",
                " / ".join(f"{ratio:.2f}" for ratio in whole_networks),
            ]
        )
    return markdown.table(
        [
            "device",
            "forward",
            "forward + backward",
            "memory of a step",
            "K at 128 / 64 / 32, of 256 channels",
            "FCN-8s, inference / step",
        ],
        table,
    )


def narrow(results: Results, wide: Results) -> str:
    """Convolutions in bfloat16: our time, of conv's in it and of ours in float32."""
    table = []
    for mode in (FORWARD, BOTH):
        in_float32 = dict(_in_table(wide, mode))
        for workload, rows in _in_table(results, mode):
            own, conv = ms(rows["pac_ops"]), ms(faster_conv(rows))
            of_wide = own / ms(in_float32[workload]["pac_ops"])
            table.append([workload, mode, f"{own:.1f}", f"{own / conv:.2f}", f"{of_wide:.2f}"])
    return markdown.table(["shape", "", "ms", "of conv's time", "of our float32"], table)


def adapting_kernels(results: Results) -> str:
    """K from 128 channels: our time, unfolding's, and the share of a 256-channel convolution."""
    table = []
    for workload, rows in results.of("packernel2d", FORWARD):
        own, unfold, conv = (ms(rows[name]) for name in ("pac_ops", operators.UNFOLD, operators.CONV))
        size = workload.split("-")[2]
        table.append([size, f"{own:.2f}", f"{unfold / own:.1f}", f"{100 * own / conv:.1f} %"])
    return markdown.table(["size", "ms", "unfold, of ours", "of a 256-channel 3x3 convolution"], table)


def transposed(results: Results) -> str:
    """5 x 5, stride 2: our time, and inserting zeros."""
    table, ratios = [], []
    for mode in (FORWARD, BOTH):
        for workload, rows in results.of("pacconv_transpose2d", mode):
            own, inserted, conv = (ms(rows[name]) for name in ("pac_ops", operators.INSERTED, operators.CONV))
            if mode == FORWARD:
                ratios.append(inserted / own)
            table.append([workload, mode, f"{own:.1f}", f"{inserted / own:.2f}", f"{own / conv:.2f}"])
    table.append(["geometric mean, forward", "", "", f"{geometric_mean(ratios):.2f}", ""])
    return markdown.table(["input", "", "ms", "zeros inserted, of ours", "of `conv_transpose2d`'s time"], table)


def enlargements(results: Results) -> str:
    """Guided enlargement, and plain bilinear."""
    table = []
    for mode in (FORWARD, BOTH):
        for workload, rows in results.of("pacresize2d", mode):
            own, wide, plain = (ms(rows[name]) for name in ("pac_ops", resizing.WIDE, resizing.BILINEAR))
            table.append([workload, mode, f"{own:.1f}", f"{wide:.1f}", f"{plain:.1f}"])
    return markdown.table(["map", "", "guided, ms", "4 x 4 footprint, ms", "bilinear, ms"], table)


def large_images(source: Path) -> str:
    """What works in bands: time, and memory beyond inputs and output."""
    with source.open(newline="") as file:
        last = {(row["call"], row["workload"], row["threads"]): row for row in csv.DictReader(file)}
    table = [[*key, row["seconds"], row["extra_mib"]] for key, row in last.items()]
    return markdown.table(["call", "maps", "threads", "s", "MiB beyond inputs and output"], table)


def whole(results: Results) -> str:
    """Networks, and the CRF."""
    table = []
    for mode in ("inference", "training step"):
        for workload, rows in results.of("FCN-8s", mode):
            plain, swapped = (rows[name] for name in (networks.PLAIN, networks.SWAPPED))
            ratio = f"{ms(swapped) / ms(plain):.3f} (memory {peak(swapped) / peak(plain):.2f})"
            table.append([f"FCN-8s, {workload}, {mode}", f"{ms(swapped):.0f}", f"{ms(plain):.0f} plain", ratio])
    for workload, rows in results.of("PacCRF", FORWARD):
        own = rows["pac_ops"]
        if crf.DENSE in rows:
            dense = rows[crf.DENSE]
            ratio = f"{ms(own) / ms(dense):.2f}"
            table.append([f"PacCRF, {workload}", f"{ms(own):.0f}", f"{ms(dense):.0f} {crf.DENSE}", ratio])
    return markdown.table(["what", "ms", "against, ms", "ratio"], table)


def growth(results: Results, path: Path) -> None:
    """Time against one thing that grows, both logarithmic, with the line of proportion."""
    figure, axes = plt.subplots(1, len(operators.GROWTH), figsize=(10, 3.2), layout="constrained")
    for axis, (what, workloads) in zip(axes, operators.GROWTH.items(), strict=True):
        times = {workload: ms(rows["pac_ops"]) for workload, rows in results.of(f"growth with {what}", BOTH)}
        sizes = {"pixels": "size", "input channels": "channels", "batch": "batch"}
        x = [getattr(w, sizes[what]) ** (2 if what == "pixels" else 1) for w in workloads]
        y = [times[w.id] for w in workloads]
        axis.loglog(x, y, "o-", color="C0", label="measured")
        axis.loglog(x, [y[-1] * value / x[-1] for value in x], "--", color="gray", label="in proportion")
        axis.set_xlabel(what)
        axis.set_xticks(x, [f"{value:,}" for value in x], rotation=30)
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("forward + backward, ms")
    axes[0].legend()
    _save(figure, path)


def shapes(results: Results, path: Path) -> None:
    """Our time, and each peer's, over the faster convolution's."""
    rows = {key: each | {OURS: faster_own(each)} for key, each in results.of("pacconv2d", FORWARD)}
    figure, axis = plt.subplots(figsize=(10, 3.6), layout="constrained")
    for name in (OURS, operators.UNFOLD, operators.DEFORM):
        ratios = [
            ms(by_backend[name]) / ms(faster_conv(by_backend)) if name in by_backend else math.nan
            for by_backend in rows.values()
        ]
        axis.semilogy(ratios, "o", label=name)
    axis.axhline(1, color="gray", linewidth=1)
    axis.set_xticks(range(len(rows)), list(rows), rotation=40, ha="right", fontsize=8)
    axis.set_ylabel("times the convolution's time")
    axis.grid(visible=True, axis="y", alpha=0.3)
    axis.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "hotswap"  # the same rows give the same file
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def in_onnxruntime(results: Results) -> str:
    """Networks exported to ONNX: the swapped one's time in onnxruntime over the plain one's, and PyTorch's."""
    table = []
    for workload, rows in results.of(exported.OP, FORWARD):
        swapped, plain = (ms(rows[name + exported.IN_ORT]) for name in (networks.SWAPPED, networks.PLAIN))
        own = ms(rows[networks.SWAPPED])
        table.append([workload, f"{swapped:.1f}", f"{plain:.1f}", f"{swapped / plain:.2f}", f"{own:.1f}"])
    return markdown.table(["network", "swapped, ms", "plain, ms", "ratio", "swapped in PyTorch, ms"], table)


def small_maps(rows: list[Row]) -> str:
    """A small map: our time, and unfold + einsum's over it, where it was measured last."""
    device = [row["device"] for row in rows if row["op"] == small.LAYER][-1]
    table = []
    for op in (small.LAYER, small.GIVEN):
        for w in small.WORKLOADS:
            dtype = str(w.dtype).removeprefix("torch.")
            for mode in (FORWARD, BOTH):
                ((_, by_backend),) = Results(rows, device, dtype).of(op, mode)
                own, peer = ms(by_backend["pac_ops"]), ms(by_backend[operators.UNFOLD])
                table.append([op.partition(", ")[2], dtype, mode, f"{own * 1e3:.0f}", f"{peer / own:.2f}"])
    return markdown.table(["what", "dtype", "", "us", "unfold + einsum, of ours"], table)


def launches(rows: list[Row]) -> str:
    """What a call takes before its kernel runs, and how many times that of PyTorch's convolution, measured last."""
    last = {(row["op"], row["mode"], row["workload"], row["backend"]): row for row in rows}
    table = []
    for (op, mode, workload, backend), row in last.items():
        if not op.startswith(launching.OP) or not backend.startswith(launching.OURS):
            continue
        own, stock = ms(row), ms(last[op, mode, workload, launching.STOCK])
        name = op.removeprefix(launching.OP)
        table.append([name, f"{row['dtype']}, {workload}", mode, f"{own * 1e3:.0f}", f"{own / stock:.1f}"])
    return markdown.table(["call", "of", "", "us", f"times {launching.STOCK}"], table)


@click.command()
@click.option("--results", "source", type=click.Path(path_type=Path, exists=True), default=RESULTS)
@click.option("--device", help="As the rows name it; by default where layers were measured last.")
@click.option("--dtype", default="float32")
def main(source: Path, device: str | None, dtype: str) -> None:
    """Write the tables into docs/performance.md, and the plots beside it."""
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = [row["device"] for row in rows if row["op"] == "pacconv2d"][-1]
    results = Results(rows, device or last, dtype)
    devices = dict.fromkeys(row["device"] for row in rows if row["op"] == "FCN-8s" and row["dtype"] == dtype)
    tables = {
        "machines": machines([Results(rows, device, dtype) for device in devices]),
        "forward": layers(results, FORWARD),
        "forward+backward": layers(results, BOTH),
        "bfloat16": narrow(Results(rows, results.device, "bfloat16"), results),
        "adapting kernel": adapting_kernels(results),
        "transposed": transposed(results),
        "enlargements": enlargements(results),
        "large images": large_images(large.LARGE),
        "whole": whole(results),
        "onnx": in_onnxruntime(results),
        "small maps": small_maps(rows),
        "launches": launches(rows),
    }
    page = PAGE.read_text()
    for name, table in tables.items():
        page = with_table(page, name, table)
    PAGE.write_text(page)
    growth(results, PLOTS / "growth.svg")
    shapes(results, PLOTS / "shapes.svg")
    click.echo(f"wrote {PAGE.name} and the plots in {PLOTS.name}/")


if __name__ == "__main__":
    main()
