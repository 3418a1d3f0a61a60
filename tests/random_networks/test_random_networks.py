"""A few hundred random networks, always the same; `python -m tests.random_networks.campaign` makes thousands."""

import collections

import pytest

from .laws import Outcome
from .refusals import reason
from .run import Found, run
from .shrink import as_test, shrink

FIRST, COUNT = 1, 300
PARTS_OF = 7  # a prime, so that the networks that are exported are in different parts


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("part", range(PARTS_OF))
def test_what_random_networks_compute(part):
    came = collections.Counter[str]()
    seeds = range(FIRST + part, FIRST + COUNT, PARTS_OF)
    for seed in seeds:
        outcome = run(seed)
        if isinstance(outcome, Found):
            pytest.fail(f"seed {seed}: {outcome.fault}\n\n{as_test(shrink(outcome))}", pytrace=False)
        elif isinstance(outcome, Outcome) and outcome.refused:
            came["refused"] += 1
            assert reason(outcome.refused) is not None, f"seed {seed}: {outcome.refused}"
        elif outcome is not None:
            came["converted"] += 1
            came["moved"] += outcome.moved
    assert came["converted"] >= 0.7 * len(seeds)  # or the laws say little
    assert came["moved"] >= 0.7 * came["converted"]
