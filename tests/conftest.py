import copy
import functools
import gc
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch.onnx._internal.exporter import _registration

# Test helpers are imported by name: tests/support/networks.py as `networks`, those of attack likewise.
for folder in ("attack", "support"):
    sys.path.insert(0, str(Path(__file__).parent / folder))


if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread a worker: two that each spread every operator over all cores wait for each other at every barrier.
    torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and so would the processes they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The collector would look through all that torch keeps every few tests, which is a twentieth of their time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

LONG = (
    "test_commands_run_as_written",
    "test_every_kernel_under_the_interpreter",
    "test_export_sizes.py",
    "random_networks/",
)


def pytest_collection_modifyitems(items):
    """The longest first: one that starts last has the other workers wait."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))


@pytest.fixture(scope="session", autouse=True)
def operators_of_onnx_read_once():
    """PyTorch's exporter reads the source of 500 operators at every export, for half a second."""
    registry = _registration.ONNXRegistry
    read = functools.cache(registry.from_torchlib)

    def from_torchlib(*arguments, **named):
        found = copy.copy(read(*arguments, **named))
        found.functions = {target: list(known) for target, known in found.functions.items()}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(from_torchlib))
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
