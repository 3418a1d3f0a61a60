"""One network from one seed, from its program to the laws."""

import random
from dataclasses import dataclass

from .generate import generate
from .laws import FaultError, Outcome, check
from .plan import Choice, choose
from .program import Program

EXPORTED = 10  # one in so many, and a short one, is written as ONNX, which takes as long as ten networks without


@dataclass(frozen=True)
class Found:
    """A fault, with all that it takes to see it again."""

    seed: int
    program: Program
    choice: Choice
    fault: FaultError
    export: bool


def run(seed: int, *, exported: int = EXPORTED) -> Outcome | Found | None:
    """Make a network and a plan from a seed, and hold them against the laws; None where there is nothing to swap."""
    export = seed % exported == 0
    program = generate(seed, dtype="float32" if export else None, short=export)
    with program.loaded() as loaded:
        choice = choose(random.Random(seed), loaded) if loaded.runs() else None  # noqa: S311 (no secret)
    if choice is None:
        return None
    try:
        return check(program, choice, seed, export=export)
    except FaultError as fault:
        return Found(seed, program, choice, fault, export)
