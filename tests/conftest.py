import os
import signal
import sys
from pathlib import Path

import pytest
import torch

# Test helpers are imported by name: tests/support/networks.py as `networks`, those of attack likewise.
for folder in ("attack", "support"):
    sys.path.insert(0, str(Path(__file__).parent / folder))


if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread a worker: two that each spread every operator over all cores wait for each other at every barrier.
    torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and so would the processes they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = (
    "test_commands_run_as_written",
    "test_every_kernel_under_the_interpreter",
    "test_export_sizes.py",
    "random_networks/",
)


def pytest_collection_modifyitems(items):
    """The longest first: one that starts last has the other workers wait."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
