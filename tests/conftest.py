import sys
from pathlib import Path

import pytest
import torch

# Test helpers are imported by name: tests/hotswap/networks.py as `networks`, tests/pac_ops/... likewise.
for folder in ("hotswap", "pac_ops"):
    sys.path.insert(0, str(Path(__file__).parent / folder))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
