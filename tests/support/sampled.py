"""Cases that the default suite leaves to `-m slow`, as it meets their like in others."""

from collections.abc import Sequence
from typing import Any

import pytest


def sampled(cases: Sequence[Any], every: int = 2) -> list[Any]:
    """Every second of a parametrized test's cases, or every third; the others with `-m slow`."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow] if n % every else [])
        for n, case in enumerate(cases)
    ]
