"""What the tests of the Triton backend share."""

import pytest
import torch

from benchmarks import poison


@pytest.fixture
def poisoned():
    """Memory that is allocated and not written holds NaN."""
    with poison.poisoned():
        yield


@pytest.fixture
def in_full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
