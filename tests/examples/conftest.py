import pytest
import torch

import hotswap
from examples.hed import HED, load_hed
from examples.pictures import photograph


@pytest.fixture(scope="session")
def hed() -> HED:
    return load_hed()


@pytest.fixture(scope="session")
def face() -> torch.Tensor:
    """A part of the astronaut: the head before a plain background, [1, 3, 200, 160]."""
    return photograph("astronaut")[:, :, :200, 140:300]


@pytest.fixture(scope="session")
def swapped_hed(hed: HED, face: torch.Tensor) -> torch.nn.Module:
    swapped = hotswap.convert(hed, ["conv3_3", "conv4_3"], "conv2_2", example_inputs=face)
    hotswap.calibrate(swapped, face, deviation=0.3)
    return swapped
