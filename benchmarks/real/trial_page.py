"""What the rows of the trial say, in Markdown; benchmarks.evidence puts it into docs/evidence.md."""

from collections.abc import Mapping, Sequence

from benchmarks import markdown
from benchmarks.evidence.statistics import Difference, difference
from benchmarks.real.behind import PLACES
from benchmarks.real.page import signed
from benchmarks.real.rows import read
from benchmarks.real.scores import PAIRS
from benchmarks.real.trial import RESULTS, SEARCH, Trial
from benchmarks.real.trial_arms import ARMS, PLAIN, START, arms

Runs = Mapping[str, Mapping[int, Trial]]  # by arm and seed


def committed() -> str:
    """The block of the rows in benchmarks/results."""
    return block(read(Trial, RESULTS))


def block(rows: Sequence[Trial]) -> str:
    """First who wins, then a table for each network."""
    if not rows:
        return "Not run yet: `python -m benchmarks.real.trial`."
    parts = []
    for network in dict.fromkeys(row.network for row in rows):
        runs = longest(rows, network)
        if PLAIN in runs:
            title = PAIRS[f"camvid_{network}"].title.rpartition(",")[0]
            parts += [f"**{title}**; {_budget(runs)}", _verdict(runs), _table(runs)]
            if missing := [f"`{arm}`" for arm in arms(PLACES[network]) if arm not in runs]:
                parts.append(f"Not run yet: {', '.join(missing)}.")
    return "\n\n".join(parts)


def longest(rows: Sequence[Trial], network: str) -> Runs:
    """The compared runs of a network with the most steps that any had."""
    own = [row for row in rows if row.network == network and row.seed != SEARCH]
    most = max((row.steps for row in own), default=0)
    runs: dict[str, dict[int, Trial]] = {}
    for row in own:
        if row.steps == most or not ARMS[row.arm].trained:
            runs.setdefault(row.arm, {})[row.seed] = row
    return {arm: runs[arm] for arm in ARMS if arm in runs}


def gain(runs: Runs, arm: str, over: str, column: str) -> Difference | None:
    """Paired over the seeds that both have; None where there are none."""
    seeds = sorted(set(runs.get(arm, {})) & set(runs.get(over, {})))
    if not seeds:
        return None
    ours, theirs = ([getattr(runs[key][seed], column) for seed in seeds] for key in (arm, over))
    return difference(ours, theirs)


def winners(runs: Runs) -> list[str]:
    """The arms whose mIoU is above plain's, and above that of the same without a guide, by more than intervals."""
    found = []
    for arm in runs:
        gains = [gain(runs, arm, over, "quality") for over in (PLAIN, ARMS[arm].control) if ARMS[arm].control]
        if gains and all(each is not None and each.mean > each.margin for each in gains):
            found.append(arm)
    return found


def _budget(runs: Runs) -> str:
    plain, start = runs[PLAIN], runs.get(START, {})
    row = next(iter(plain.values()))
    place = PLACES[row.network]
    batch = f"{place.batch} {'whole frames' if place.whole else 'crops'}"
    before = "".join(f"{x.quality:.1f} mIoU and {x.near:.1f} near edges before, " for x in start.values())
    quality, near = (sum(getattr(x, column) for x in plain.values()) / len(plain) for column in ("quality", "near"))
    return (
        f"{row.steps} steps of {batch}, {len(plain)} seeds; {before}{quality:.1f} and {near:.1f} after tuning "
        f"with nothing swapped, on {row.images} images. Gains in points, with intervals over seeds; each arm's rate "
        f"is the best of {len(place.rates)}."
    )


def _verdict(runs: Runs) -> str:
    found = winners(runs)
    if not found:
        return "No arm beats both the plain network and the same without a guide, in mIoU, by more than its interval."
    return f"Above both the plain network and the same without a guide: {', '.join(f'`{arm}`' for arm in found)}."


def _table(runs: Runs) -> str:
    lines = []
    for arm, own in runs.items():
        if arm in (START, PLAIN):
            continue
        row, control = next(iter(own.values())), ARMS[arm].control
        line = [f"`{arm}`", ARMS[arm].about]
        for over in (PLAIN, control):
            line += [_signed(gain(runs, arm, over, column)) for column in ("quality", "near")]
        opened = sum(each.opened for each in own.values()) / len(own)
        lines.append([*line, f"{row.added:,}", f"{opened:.2f}" if opened else "", f"{row.rate:g}"])
    head = ["arm", "what", "mIoU over plain", "near edges", "over its control", "near edges"]
    head += ["parameters", "mean of abs(a)", "rate"]
    return markdown.table(head, lines)


def _signed(found: Difference | None) -> str:
    return "" if found is None else signed(found.mean, found.margin)
