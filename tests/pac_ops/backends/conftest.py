"""What the tests of the Triton backend share."""

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that is allocated and not written holds NaN."""

    def poison(allocate):
        return lambda *args, **kwargs: allocate(*args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture
def in_full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def untuned(monkeypatch):
    from pac_ops.backends.triton import gather, weight_gradient  # where there is Triton

    for module in (gather, weight_gradient):
        monkeypatch.setattr(module._DOT, "_tuner", None)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
