from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from PIL import Image

import hotswap


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, but for weights and photographs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(networks.__file__).parent))
    torch.manual_seed(5)
    torch.save({"state_dict": {f"module.{k}": x for k, x in networks.Plain().state_dict().items()}}, "w.pth")
    chance = np.random.default_rng(0)
    Path("photos").mkdir()
    for index in range(5):
        Image.fromarray(chance.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(f"photos/{index}.png")
    return tmp_path


@pytest.fixture
def swapped(here):
    hotswap.save(hotswap.convert(networks.Plain(), "target", "guide"), "swapped.safetensors")
    return "swapped.safetensors"
