"""Swapped networks in the runtimes of benchmarks/runtimes, each where it is installed; the page is what the rows say."""

import pytest
import torch
import torch.nn.functional as F
from test_lean import Convolving, Enlarging
from torch import nn

import hotswap
from benchmarks.real.rows import read
from benchmarks.runtimes import page
from benchmarks.runtimes.measure import gap
from benchmarks.runtimes.routes import ROUTES
from benchmarks.runtimes.rows import ALLOWED, MORE, RESULTS, Row


class Sharing(nn.Module):
    """Two convolutions at smaller sizes, of one guide."""

    def __init__(self):
        super().__init__()
        self.guide = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.guide(x)), 2)
        return self.last(F.avg_pool2d(self.first(x), 2))


NETWORKS = {
    "enlargement": (Enlarging, {"targets": "resize", "guide": "input"}),
    "convolution": (Convolving, {"targets": "target", "guide": "guide"}),
    "one guide": (Sharing, {"targets": ["first", "last"], "guide": "guide"}),
    "output": (Convolving, {"targets": "output_guided", "space": hotswap.GuideSpace("lab")}),
}
SLOW = {  # compiled by a C++ compiler in minutes, or what test_export.py holds too
    "AOTInductor",
    "`torch.compile`",
    "onnxruntime",
    "onnxruntime, open sizes",
}


def routes():
    for name, route in ROUTES.items():
        yield pytest.param(route, id=name.replace("`", ""), marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("route", [*routes()])
@pytest.mark.timeout(600)
def test_it_computes_there_what_pytorch_does(tmp_path, route, network):
    if route.version() is None:
        pytest.skip("it is not installed")
    kind, options = NETWORKS[network]
    torch.manual_seed(0)
    plain, image = kind().eval(), torch.rand(1, 3, 32, 48)
    swapped = hotswap.convert(plain, **options, guide_scale=2.0, example_inputs=image)
    found = error(route, swapped, image, tmp_path / "swapped")
    if found is None:  # it converts, and runs elsewhere
        return
    assert found <= (ALLOWED if route.exact else MORE * error(route, plain, image, tmp_path / "plain"))


def error(route, network, image, folder):
    folder.mkdir()
    if (run := route.load(network, image, folder)) is None:
        return None
    with torch.no_grad():
        return gap(run(), network(image), exact=route.exact)


def test_the_table_is_what_the_rows_say():
    assert page.content(read(Row, RESULTS)) in page.PAGE.read_text()
