"""Swapped networks in the runtimes of benchmarks/runtimes, each where it is installed; the page is what the rows say."""

import pytest
import torch
from test_lean import Convolving, Enlarging

import hotswap
from benchmarks.real.rows import read
from benchmarks.runtimes import page
from benchmarks.runtimes.measure import gap
from benchmarks.runtimes.routes import ROUTES
from benchmarks.runtimes.rows import ALLOWED, MORE, RESULTS, Row

NETWORKS = {"enlargement": (Enlarging, "resize", "input"), "convolution": (Convolving, "target", "guide")}
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
    kind, targets, guide = NETWORKS[network]
    torch.manual_seed(0)
    plain, image = kind().eval(), torch.rand(1, 3, 32, 48)
    swapped = hotswap.convert(plain, targets, guide, guide_scale=2.0, example_inputs=image)
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
