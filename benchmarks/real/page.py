"""What the rows of real networks and labels say, in Markdown; benchmarks.evidence puts it into docs/evidence.md."""

from collections.abc import Sequence

from benchmarks import markdown
from benchmarks.evidence.statistics import difference
from benchmarks.real.compare import PLAIN, RESULTS, Row
from benchmarks.real.cost import RESULTS as COSTS
from benchmarks.real.cost import Cost
from benchmarks.real.finetune import ARMS, BEFORE, SWAPPED, SWAPPED_THEN_TUNED, TUNED, TUNED_THEN_SWAPPED, Tuned
from benchmarks.real.finetune import RESULTS as TUNED_RESULTS
from benchmarks.real.learned import BEHIND, TAPS, UPSAMPLERS, Learned
from benchmarks.real.learned import PLAIN as PLAIN_ARM
from benchmarks.real.learned import RESULTS as LEARNED_RESULTS
from benchmarks.real.rivals import OURS, OWN, RIVALS
from benchmarks.real.rows import read
from benchmarks.real.scores import CROPS, PAIRS, Pair


def committed() -> str:
    """The block of the rows in benchmarks/results."""
    return block(read(Row, RESULTS), read(Tuned, TUNED_RESULTS), read(Cost, COSTS))


def committed_learned() -> str:
    """The block of networks whose last layers are learned."""
    return learned_block(read(Learned, LEARNED_RESULTS))


def block(rows: Sequence[Row], tuned: Sequence[Tuned] = (), costs: Sequence[Cost] = ()) -> str:
    """First who is ahead, then a table for each pair, then what fine-tuning leaves of it, and what it costs."""
    if not rows:
        return "Not run yet: `python -m benchmarks.real.compare`."
    parts = [_first(rows)]
    for name, pair in (PAIRS | CROPS).items():
        of_pair = [row for row in rows if row.pair == name]
        if of_pair:
            parts += [f"**{pair.title}**; {_images(pair, of_pair)}", _table(of_pair)]
    if tuned:
        parts += [f"**After fine-tuning** of the decoder; {_budget(tuned)}", _after(tuned)]
    if costs:
        parts += ["**Time** of one image on one thread, in ms of the processor, and as a part of a dense CRF's:"]
        parts += [_costs(costs, rows)]
    return "\n\n".join(parts)


def _first(rows: Sequence[Row]) -> str:
    """A line a pair: the default's gain, and each method that beats it on a column, by name."""
    lines = []
    for name, pair in (PAIRS | CROPS).items():
        by_rival = {row.rival: row for row in rows if row.pair == name}
        default = by_rival.get(OURS)
        if default is None:
            continue
        others = [row for key, row in by_rival.items() if key not in (*OWN, PLAIN)]
        lines.append(
            [
                pair.title,
                signed(default.quality_gain, default.quality_margin),
                _ahead(others, default, "quality"),
                signed(default.near_gain, default.near_margin),
                _ahead(others, default, "near"),
            ]
        )
    head = [
        "",
        "ours, IoU or mIoU",
        "rivals that beat it, or the best",
        "near edges",
        "rivals that beat it, or the best",
    ]
    return markdown.table(head, lines)


def _ahead(others: Sequence[Row], default: Row, column: str) -> str:
    """The rivals whose gain is above the default's, best first; else the best of them, which is behind."""
    gains = {row.rival: getattr(row, f"{column}_gain") for row in others}
    if not gains:
        return "none measured"
    ordered = sorted(gains, key=lambda key: -gains[key])
    ahead = [key for key in ordered if gains[key] > getattr(default, f"{column}_gain")]
    if ahead:
        return "**beaten by** " + ", ".join(f"{RIVALS[key].title} {gains[key]:+.2f}" for key in ahead)
    return f"none; {RIVALS[ordered[0]].title} {gains[ordered[0]]:+.2f}"


def _images(pair: Pair, rows: Sequence[Row]) -> str:
    chosen = max(row.chosen_on for row in rows)
    settings = max(row.settings for row in rows)
    rows_of, columns = pair.grid
    each = f", {rows_of * columns} crops of each" if rows_of * columns > 1 else ""
    return f"settings chosen on {chosen} images, of up to {settings}, figures of {rows[0].images} others{each}:"


def _table(rows: Sequence[Row]) -> str:
    lines = [
        [
            RIVALS[row.rival].title,
            f"{row.quality:.1f}",
            "" if row.rival == PLAIN else signed(row.quality_gain, row.quality_margin),
            f"{row.near:.1f}",
            "" if row.rival == PLAIN else signed(row.near_gain, row.near_margin),
            f"{row.ms:.1f}" if row.ms < 10 else f"{row.ms:.0f}",
            f"{row.mib:.0f}",
            f"{row.setting} (of {row.settings})" if row.settings > 1 else row.setting,
        ]
        for row in rows
    ]
    return markdown.table(["", "IoU", "gain", "near edges", "gain", "ms", "MiB", "setting"], lines)


def _budget(rows: Sequence[Tuned]) -> str:
    seeds = len({row.seed for row in rows})
    steps = " or ".join(f"{n}" for n in sorted({row.steps for row in rows}, reverse=True))
    return (
        f"{steps} steps of the same images for both, {seeds} seeds, gains over the plain network in the same "
        f"state, on {rows[0].images} images, intervals over seeds:"
    )


def _after(rows: Sequence[Tuned]) -> str:
    lines = []
    for network in dict.fromkeys(row.network for row in rows):
        arms = {arm: [row for row in rows if (row.network, row.arm) == (network, arm)] for arm in ARMS}
        before, plain = arms[BEFORE][0], arms[TUNED]
        line = [PAIRS[f"camvid_{network}"].title]
        for column in ("quality", "near"):
            values = {arm: [getattr(row, column) for row in arms[arm]] for arm in ARMS}
            line.append(f"{getattr(before, column):.1f}, {sum(values[TUNED]) / len(plain):.1f}")
            line.append(f"{values[SWAPPED][0] - values[BEFORE][0]:+.2f}")
            for arm in (TUNED_THEN_SWAPPED, SWAPPED_THEN_TUNED):
                gain = difference(values[arm], values[TUNED])
                line.append(signed(gain.mean, gain.margin))
        lines.append(line)
    head = ["swapped before", "swapped after", "swapped, then tuned"]
    return markdown.table(["", "mIoU, tuned", *head, "near edges, tuned", *head], lines)


def learned_block(rows: Sequence[Learned]) -> str:
    """A line for each network whose last layers are learned: what each way of guiding them gains."""
    if not rows:
        return "Not run yet: `python -m benchmarks.real.learned`."
    lines = []
    for name, (title, _) in UPSAMPLERS.items():
        arms = {row.arm: row for row in rows if row.upsampler == name}
        if PLAIN_ARM not in arms:
            continue
        line = [title, f"{arms[PLAIN_ARM].quality:.1f}, {arms[PLAIN_ARM].near:.1f}"]
        for arm in (BEHIND, TAPS):
            row = arms.get(arm)
            line += (
                ["", ""]
                if row is None
                else [signed(row.quality_gain, row.quality_margin), signed(row.near_gain, row.near_margin)]
            )
        lines.append(line)
    behind, taps = (f"`{BEHIND}`", "K in the layer, its scale chosen")
    return markdown.table(["", "mIoU, near edges", behind, "near edges", taps, "near edges"], lines)


def _costs(costs: Sequence[Cost], rows: Sequence[Row]) -> str:
    """What guiding adds to a network; and to bilinear enlargement, as a part of what a dense CRF adds to that."""
    ms = {(row.pair, row.rival): row.ms for row in rows}
    lines = []
    for cost in costs:
        plain, default, crf = (ms.get((cost.pair, key)) for key in (PLAIN, OURS, "dense_crf"))
        part = "" if plain is None or default is None or crf is None else f"1/{(crf - plain) / (default - plain):.0f}"
        times = [f"{cost.plain_ms:.1f}", f"{cost.guided_ms:.1f}", f"{cost.percent:+.1f} %"]
        lines.append([PAIRS[cost.pair].title, *times, part])
    return markdown.table(["", "plain network", "guided", "", "of a dense CRF's time"], lines)


def signed(gain: float, margin: float) -> str:
    """A gain and half of its interval, bold where that leaves out 0."""
    text = f"{gain:+.2f} ± {margin:.2f}"
    return f"**{text}**" if abs(gain) > margin else text
