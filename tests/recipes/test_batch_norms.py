"""Batch normalisation over processes, in a group of one, where it must be torch's; test_processes.py has two."""

import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from recipes.batch_norms import OverProcesses

LAYERS = {
    "of images": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 6)),
    "of vectors": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "without weights": (lambda: nn.BatchNorm2d(3, affine=False, momentum=None), (4, 3, 5, 6)),
    "that keeps no statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 6)),
    "with an activation": (lambda: BatchNormAct2d(3), (4, 3, 5, 6)),
}


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_group_of_one_computes_what_torch_does(name, dtype):
    make, size = LAYERS[name]
    layer = make().to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = (100 + torch.randn(size)).to(dtype)  # far from 0, where the square of the mean would drown the variance
    exact = computed(copy.deepcopy(layer).double(), x.double())
    with OverProcesses():
        found = computed(layer, x)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for result, wanted in zip(found, exact, strict=True):
        assert result.dtype == (dtype if wanted.dtype == torch.float64 else wanted.dtype)
        torch.testing.assert_close(result, wanted, rtol=tolerance, atol=tolerance, check_dtype=False)


def computed(layer, x):
    """Output, gradients and statistics."""
    x = x.clone().requires_grad_()
    output = layer(x)
    (output * torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)).sum().backward()
    return [output, x.grad, *(parameter.grad for parameter in layer.parameters()), *layer.buffers()]


@pytest.mark.usefixtures("group")
def test_a_network_that_does_not_train_keeps_its_statistics():
    layer, x = nn.BatchNorm2d(3).eval(), torch.rand(2, 3, 4, 4)
    with OverProcesses():
        assert torch.equal(layer(x), x / (1 + layer.eps) ** 0.5)
    assert torch.equal(layer.running_mean, torch.zeros(3))
