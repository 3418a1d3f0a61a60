"""What the rows add up to, on the terminal and as a page."""

from collections import Counter
from collections.abc import Iterable, Mapping

from rich.table import Table

from benchmarks import markdown
from benchmarks.coverage.sweep import COUNTED, OK, PLAIN

Rows = Mapping[str, Mapping[str, str]]
LIBRARIES = ("timm", "torchvision", "smp", "transformers")
WHAT = """\
Every network below was built without pretrained weights and converted with the paper's choice of targets and
guide (where a network has too few stages for that: its last spatial convolution, guided by its first convolution).
It counts as converted if its outputs agree with the plain ones to rounding at `guide_scale=0`, and within 1e-3 at
1e-4; if gradients reach every target's weight and the guide; if `state_dict` keys and class are the same; and if
`revert` gives back bit-identical outputs. Networks that call fewer than two spatial convolutions of odd window are
left out. Networks whose plain version does not run are counted apart. Images are small: some networks for one
large size were built for a smaller one, and some networks of transformers were built with fewer layers behind
their convolutions."""
ENLARGEMENTS = """\
The same for every network that enlarges a map by 2 or more at the size it ran at. All those enlargements are
guided by the image or, if a network gets no image as a tensor, as detection networks do, by what the refusal
proposes. It counts as converted if outputs and all gradients of parameters are the plain network's to rounding at
`guide_scale=0`; if both are finite at the default deviation of 0.5; if `state_dict` keys and class are the same;
and if `revert` gives back bit-identical outputs. A nearest enlargement reads one coarse pixel, so there is nothing
to steer. Networks that have some are converted with a footprint of 4 x 4 too. Even at `guide_scale=0` that is
another enlargement, so there all but the first of these conditions hold."""
_COLUMNS = ("library", "networks", "converted", "share", "families", "fx", "hooks", "not converted", "plain fails")


def totals(rows: Rows) -> Table:
    """One line a library, and all of them."""
    table = Table(title="networks whose plain version runs and that have what is to be swapped")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "library" else "right")
    for line in _lines(rows.values()):
        table.add_row(*line)
    return table


def page(convolutions: Rows, enlargements: Rows) -> str:
    """docs/coverage.md: totals, then by name all that do not convert or do not run."""
    parts = [
        "# Coverage",
        WHAT,
        _measured(convolutions, "coverage.csv", "python -m benchmarks.coverage")
        + " `--table docs/coverage.md` writes this page.",
        *_section(convolutions),
        "## The plain network does not run",
        _named([row for row in convolutions.values() if row["outcome"] == PLAIN], "All of them run."),
        "# Enlargements",
        ENLARGEMENTS,
        f"Looked at so far: {len(enlargements)} of {len(convolutions)} networks, first those whose code resizes.",
        _measured(enlargements, "coverage_enlargements.csv", "python -m benchmarks.coverage --swap enlargements"),
        *_section(enlargements),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(rows: Rows, file: str, command: str) -> str:
    """When and with what."""
    dates = sorted({row["date"] for row in rows.values()})
    versions = sorted({f"{row['library']} {row['library_version']}" for row in rows.values()})
    torches = sorted({row["torch"] for row in rows.values()})
    commits = Counter(row["commit"] for row in rows.values())
    return (
        f"Measured {dates[0]} to {dates[-1]}, torch {', '.join(torches)}, {', '.join(versions)}; at hotswap commits "
        + ", ".join(f"{name} ({count} networks)" for name, count in commits.most_common())
        + f". `{command}` repeats it and adds to [the rows](../benchmarks/results/{file})."
    )


def _section(rows: Rows) -> list[str]:
    counted = [row for row in rows.values() if row["outcome"] in COUNTED]
    return [
        markdown.table(_COLUMNS, _lines(rows.values())),
        "## Families",
        markdown.table(("library", "family", "converted", "method"), _families(counted)),
        "## Not converted",
        _named([row for row in counted if row["outcome"] != OK], "All of them convert."),
    ]


def _lines(rows: Iterable[Mapping[str, str]]) -> list[tuple[str, ...]]:
    by_library = {library: [row for row in rows if row["library"] == library] for library in LIBRARIES}
    return [
        _line(name, some)
        for name, some in [*by_library.items(), ("all", [r for s in by_library.values() for r in s])]
    ]


def _line(name: str, rows: list[Mapping[str, str]]) -> tuple[str, ...]:
    counted = [row for row in rows if row["outcome"] in COUNTED]
    converted = [row for row in counted if row["outcome"] == OK]
    methods = Counter(row["method"] for row in converted)
    families = {(row["library"], row["family"]) for row in converted}
    plain = sum(row["outcome"] == PLAIN for row in rows)
    share = f"{len(converted) / len(counted):.1%}" if counted else "-"
    numbers = (len(counted), len(converted), share, len(families), methods["fx"], methods["hooks"])
    return (name, *map(str, numbers), str(len(counted) - len(converted)), str(plain))


def _families(rows: list[Mapping[str, str]]) -> list[tuple[str, ...]]:
    keys = sorted({(row["library"], row["family"]) for row in rows})
    lines: list[tuple[str, ...]] = []
    for key in keys:
        some = [row for row in rows if (row["library"], row["family"]) == key]
        good = [row for row in some if row["outcome"] == OK]
        lines.append((*key, f"{len(good)} of {len(some)}", ", ".join(sorted({row["method"] for row in good}))))
    return lines


def _named(rows: list[Mapping[str, str]], none: str) -> str:
    if not rows:
        return none
    return markdown.table(
        ("network", "outcome", "reason"),
        [(f"{row['library']}:{row['name']}", row["outcome"], row["reason"].replace("|", "\\|")) for row in rows],
    )
