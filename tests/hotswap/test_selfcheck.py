"""`convert` compares a swapped network at guide scale 0 with the plain one, on what inputs it has."""

import pytest
import torch
import torch.nn.functional as F
from networks import conv
from torch import nn

import hotswap


class AsksForATensor(nn.Module):
    """Adds a skip connection if that is a tensor, by a test that no tracer can answer: a proxy's type is its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.target = conv(3), conv()

    def forward(self, x):
        skip = self.stem(x).relu()
        y = skip.tanh()
        if type(skip) is torch.Tensor:
            y = y + skip
        return F.interpolate(self.target(y), scale_factor=2, mode="bilinear")


@torch.no_grad()
@pytest.mark.parametrize("method", ["auto", "fx", "hooks"])
def test_a_graph_that_took_another_branch_is_not_used(method):
    plain, image = AsksForATensor().eval(), torch.rand(1, 3, 12, 10)
    if method == "fx":
        with pytest.raises(hotswap.HotswapError, match='does not compute what the plain one does.*method="hooks"'):
            hotswap.convert(plain, "target", "stem", method=method, example_inputs=image)
        return
    converted = hotswap.convert(plain, "target", "stem", guide_scale=0.0, method=method, example_inputs=image)
    torch.testing.assert_close(converted(image), plain(image))
