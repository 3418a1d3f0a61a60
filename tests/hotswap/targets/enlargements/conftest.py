import pytest
import torch
from enlarging_nets import Net
from networks import enlarge_by_hooks


@pytest.fixture(params=["fx", "hooks"], autouse=True)
def way(request, monkeypatch):
    """All by either; hooks where the code cannot be traced."""
    if request.param == "hooks":
        enlarge_by_hooks(monkeypatch)
    return request.param


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()
