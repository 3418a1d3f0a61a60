"""One network by one route: `python -m benchmarks.runtimes.measure NETWORK ROUTE`, which prints JSON."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.runtimes.networks import pair
from benchmarks.runtimes.routes import ROUTES, Run, first

ROUNDS, SECONDS = 30, 20.0


def measured(network: str, route: str) -> dict[str, Any]:
    """Seconds to the first result, the largest difference from PyTorch, and times, plain and swapped in turn."""
    plain, swapped, image = pair(network)
    found: dict[str, Any] = {}
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        for label, model in (("plain", plain), ("swapped", swapped)):
            (own := Path(folder) / label).mkdir()
            started = time.perf_counter()
            run = ROUTES[route].load(model, image, own)
            if run is not None:
                result = run()
                with torch.no_grad():
                    expected = first(model(image))
                found[f"gap_{label}"] = gap(result, expected, exact=ROUTES[route].exact)
                runs[label] = run
            found[f"seconds_{label}"] = time.perf_counter() - started
            print(json.dumps(found), flush=True)
        return found | {f"ms_{label}": 1e3 * least for label, least in _least(runs).items()}


def gap(found: torch.Tensor, expected: torch.Tensor, *, exact: bool) -> float:
    """The largest difference by the largest number or, of what is not exact, the root mean squares' ratio."""
    of = torch.linalg.vector_norm(found - expected, torch.inf if exact else 2)
    return float(of / torch.linalg.vector_norm(expected, torch.inf if exact else 2))


def _least(runs: dict[str, Run]) -> dict[str, float]:
    """The fastest of some rounds, in turn."""
    times: dict[str, list[float]] = {label: [] for label in runs}
    until = time.perf_counter() + SECONDS
    for done in range(ROUNDS):
        if done >= 3 and time.perf_counter() > until:
            break
        for label, run in runs.items():
            started = time.perf_counter()
            run()
            times[label].append(time.perf_counter() - started)
    return {label: min(values) for label, values in times.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(*sys.argv[1:])))
