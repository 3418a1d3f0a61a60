import pytest
import torch
from networks import enlarge_by_hooks


@pytest.fixture
def by_hooks(monkeypatch):
    enlarge_by_hooks(monkeypatch)


@pytest.fixture
def image():
    return torch.randn(2, 3, 13, 10, generator=torch.Generator().manual_seed(0))
