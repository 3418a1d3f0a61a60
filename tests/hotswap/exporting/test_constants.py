"""What programs compute of parameters alone: once, at the export."""

import io

import pytest
import torch
from torch import nn

import hotswap
from hotswap.exporting.program import exported_program


class Folds(nn.Module):
    """A weight that is reordered before it is used, and whatever a test does besides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x):
        return x @ self.weight.t().reshape(2, 8).reshape(4, 4)


class Counts(Folds):
    def forward(self, x):
        self.count.add_(1)
        return x + (self.count * 2).sin()


class Overwrites(Folds):
    def forward(self, x):
        table = self.weight * 2
        before = x @ table.t().contiguous()
        table.mul_(x.mean())
        return before + table.t()


class Draws(Folds):
    def forward(self, x):
        return x + torch.rand_like(self.weight)


class Ties(Folds):
    def forward(self, x):
        return super().forward(x) @ self.weight


class Widens(Folds):
    def forward(self, x):
        return x + self.weight.repeat(1, 600)[:, :1] + self.weight.expand(64, 4, 4).contiguous().cumsum(0)[-1]


class Splits(Folds):
    def forward(self, x):
        first, second = self.weight.t().split(2)
        return x @ torch.cat([second, first])


class Quantised(Folds):
    def __init__(self):
        super().__init__()
        self.register_buffer("levels", torch.randint(-128, 128, (4, 4), dtype=torch.int8))

    def forward(self, x):
        return x @ (self.levels.t().contiguous().float() * 0.01)


class Returns(Folds):
    def forward(self, x):
        table = self.weight.t() * 2
        return {"x": x @ table, "table": table, "weight": self.weight}


def program(model, example=None, **options):
    return exported_program(model.eval(), (torch.randn(4, 4) if example is None else example,), None, **options)


def reloaded(exported):
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    return torch.export.load(file).module()


def operators(exported):
    return [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]


def test_a_reordered_weight_is_held_once_as_it_is_used():
    exported = program(Folds())
    assert operators(exported) == ["aten.matmul.default"]
    assert not exported.state_dict.keys() & {"weight"}
    (constant,) = exported.constants.values()
    assert constant.shape == (4, 4)


@pytest.mark.parametrize("kind", [Folds, Overwrites, Ties, Widens, Splits, Quantised, Returns])
def test_results_are_the_networks(kind):
    model, exported = kind(), program(kind())
    run = reloaded(exported)
    for seed in range(3):
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(run(x), model(x), rtol=0, atol=0)
    exported.run_decompositions({})  # as runtimes do


def test_what_a_network_writes_to_is_computed_at_every_call():
    run, x = reloaded(program(Counts())), torch.randn(4, 4)
    for calls in (1.0, 2.0, 3.0):
        torch.testing.assert_close(run(x), x + torch.tensor(2 * calls).sin())


def test_what_is_drawn_is_drawn_at_every_call():
    run, x = reloaded(program(Draws())), torch.zeros(4, 4)
    assert not torch.equal(run(x), run(x))


def test_a_weight_that_something_else_reads_stays():
    assert "weight" in program(Ties()).state_dict


def test_nothing_larger_than_its_parameters_is_held():
    exported = program(Widens())
    assert sum(x.numel() for x in [*exported.state_dict.values(), *exported.constants.values()]) <= 16 + 16 + 4


def test_weights_of_8_bits_stay_so():
    (held,) = program(Quantised()).constants.values()
    assert held.dtype == torch.int8


@pytest.mark.parametrize("conserve", [None, "window"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_weights_of_swapped_convolutions_are_constants(dynamic, conserve, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, groups=2))
    image = torch.rand(1, 3, 12, 16)
    swapped = hotswap.convert(net.eval(), ["2"], "0", guide_scale=2, conserve=conserve, example_inputs=image)
    hotswap.export(swapped, tmp_path / "net.pt2", example_inputs=image, dynamic=dynamic)
    exported = torch.export.load(tmp_path / "net.pt2")
    held = {spec.arg.name for spec in exported.graph_signature.input_specs if spec.target is not None}
    convolutions = [node for node in exported.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) > 1
    assert all(node.args[1].name in held for node in convolutions)
    for size in ((12, 16), (20, 9)) if dynamic else ((12, 16),):
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(exported.module()(x), swapped(x).detach())
