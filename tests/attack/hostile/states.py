"""States of runs, as state.pt holds them."""

import json

import torch
import traps

from hostile.archives import archive, zeros_deflated
from hostile.pickles import bombs, zipped
from hostile.samples import GIB, STATE, Calls, Sample, run_state, torch_bytes


def states(trap):
    """States of runs."""
    made = []

    def add(name, content, *, refused=True):
        made.append(Sample(STATE, f"state {name}", ".pt", content, refused))

    for name, how in traps.gadgets(trap).items():
        add(name, torch_bytes(run_state() | {"x": Calls(*how)}))
    for text in ("[]", "{}", "7", "null", '{"format": 1}', '{"format": 2}', "[" * 100_000, "{", '"x"'):
        add(f"that says {text[:20]}", torch_bytes(run_state() | {"hotswap_run": text}))
    for key, value in (("recipe", 3), ("plan", []), ("plan", {"swaps": 1}), ("record", []), ("record", {"x": 1})):
        known = json.loads(run_state()["hotswap_run"]) | {key: value}
        add(f"with {key} {value}", torch_bytes(run_state() | {"hotswap_run": json.dumps(known)}))
    add("without a trainer", torch_bytes({"hotswap_run": run_state()["hotswap_run"]}))
    add("that is a list", torch_bytes([1]))
    add("that is a tensor", torch_bytes(torch.ones(2)))
    for name, content in bombs().items():
        add(f"bomb {name}", zipped(content))
    size = 3 * GIB
    add("zip bomb", archive([(b"archive/data.pkl", zeros_deflated(size), 8, size)]))
    return made
