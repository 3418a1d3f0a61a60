"""Attacks at length, with the samples of tests/attack. See README.md."""

import sys
from pathlib import Path

# As in tests/conftest.py: the helpers of the tests are imported by name.
_TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(_TESTS / folder) for folder in ("attack", "support")]
