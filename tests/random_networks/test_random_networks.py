"""Some random networks, always the same, and with `-m slow` some more; `python -m tests.random_networks.campaign` makes
thousands.
"""

import collections

import pytest

from .laws import Outcome
from .refusals import reason
from .run import Found, run
from .shrink import as_test, shrink

QUICK, ALL = 36, 300
PARTS = 3  # prime to `run.EXPORTED`, so that the networks that are exported are in different parts


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "seeds",
    [range(1 + part, 1 + QUICK, PARTS) for part in range(PARTS)]
    + [pytest.param(range(1 + QUICK + part, 1 + ALL, PARTS), marks=pytest.mark.slow) for part in range(PARTS)],
    ids=str,
)
def test_what_random_networks_compute(seeds):
    came = collections.Counter[str]()
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
