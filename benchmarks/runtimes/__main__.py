"""Measures what is missing, and writes the table of docs/export.md."""

import datetime as dt
import json
import math
import subprocess
import sys

import click

from benchmarks.harness import commit, processor
from benchmarks.real.rows import read, write
from benchmarks.runtimes import page
from benchmarks.runtimes.networks import SUBJECTS
from benchmarks.runtimes.routes import ROUTES
from benchmarks.runtimes.rows import ALLOWED, MORE, RESULTS, Row
from hotswap.versions import installed

NUMBERS = ("gap_plain", "gap_swapped", "seconds_plain", "seconds_swapped", "ms_plain", "ms_swapped")


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(list(SUBJECTS)), help="Only these.")
@click.option("--route", "routes", multiple=True, type=click.Choice(list(ROUTES)), help="Only these.")
@click.option("--redo", is_flag=True, help="Also what has a row.")
@click.option("--seconds", type=float, default=900.0, show_default=True, help="That one may take, plain and swapped.")
def main(networks: tuple[str, ...], routes: tuple[str, ...], redo: bool, seconds: float) -> None:
    """Take each network by each route whose runtime is installed, in a process of its own; rows are kept."""
    for network in networks or SUBJECTS:
        for route in routes or ROUTES:
            version = ROUTES[route].version()
            rows = {(row.network, row.route): row for row in read(Row, RESULTS)}
            if version is None or ((network, route) in rows and not redo):
                continue
            rows[network, route] = row = _row(network, route, version, seconds)
            click.echo(f"{network}, {route}: {row.why or f'{row.ratio:.2f} of plain'}")
            order = [(n, r) for n in SUBJECTS for r in ROUTES]
            write(sorted(rows.values(), key=lambda row: order.index((row.network, row.route))), RESULTS)
    page.write()


def _row(network: str, route: str, version: str, seconds: float) -> Row:
    words = [sys.executable, "-m", "benchmarks.runtimes.measure", network, route]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds)  # noqa: S603 (our own command)
        said, why = done.stdout, _last(done.stderr) if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        said, why = (error.stdout or b"").decode(), f"not done in {seconds:.0f} s"
    found = [json.loads(line) for line in said.splitlines() if line.startswith('{"')]
    values = dict.fromkeys(NUMBERS, math.nan) | (found[-1] if found else {})
    if why and math.isnan(values["seconds_plain"]):
        why = f"{why} (the plain network too)"
    gap, own = values["gap_swapped"], values["gap_plain"]
    has_run = bool(found) and "gap_swapped" in found[-1]
    if has_run and not gap <= (ALLOWED if ROUTES[route].exact else MORE * own):  # nan is wrong, too
        why = f"differs from PyTorch by {gap:.1e} of the output, the plain network by {own:.1e}"
    return Row(
        network=network,
        route=route,
        **{name: float(f"{value:.4g}") for name, value in values.items()},
        why=why,
        version=version,
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        commit=commit(),
        versions=" ".join(f"{k}={v}" for k, v in installed(("torch",)).items()),
        processor=processor(),
    )


def _last(text: str) -> str:
    """The last line of a traceback, shortened."""
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "no message").strip()
    return line if len(line) <= 160 else f"{line[:160]}..."


if __name__ == "__main__":
    main()
