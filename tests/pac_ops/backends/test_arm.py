"""The compiled kernels on an ARM processor, emulated: against the float64 oracle, as on this one."""

import emulated_arm
import pytest
import torch
from oracle import CASES, assert_close

from pac_ops import packernel2d, pacresize2d, srgb_to_lab
from pac_ops.backends.native import compiled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:a 1x1 window"),
    pytest.mark.skipif(emulated_arm.missing() is not None, reason=str(emulated_arm.missing())),
]


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    made = emulated_arm.Arm(tmp_path_factory.mktemp("arm"))
    yield made
    made.close()


def test_every_kernel(arm, monkeypatch):
    emulated_arm.patch(monkeypatch, arm)
    for case in CASES:
        for dtype in (torch.float32, torch.float64):
            inputs = case.inputs(dtype)
            expected = case.run({k: None if v is None else v.double() for k, v in inputs.items()}, "reference")
            for name, value in case.run(inputs, "native").items():
                assert_close(value, expected[name], dtype, f"{case} {name}")
    _enlargements()
    image = torch.rand(1, 3, 9, 11)
    distances = packernel2d(image, None, 3, padding=1, kernel_type="inv_1_0.5")[0]
    exact = packernel2d(image.double(), None, 3, padding=1, kernel_type="inv_1_0.5")[0]
    assert_close(distances, exact, torch.float32, "a kernel of distances")
    assert_close(srgb_to_lab(image), srgb_to_lab(image.double()), torch.float32, "Lab")
    assert arm.calls == set(compiled._ARGUMENTS), "a kernel was not called"


def _enlargements():
    torch.manual_seed(0)
    v, f = torch.randn(2, 3, 9, 5), torch.rand(2, 3, 33, 19)
    for footprint, halvings, align in ((2, 0, False), ((6, 4, 2), 0, True), ((4, 2), 1, False)):
        options = {
            "footprint": footprint,
            "halvings": halvings,
            "align_corners": align,
            "residual": True,
            "scale": 3.0,
        }
        expected = pacresize2d(v.double(), f.double(), **options)
        assert_close(pacresize2d(v, f, **options), expected, torch.float32, "enlargement")
        leaves = [x.clone().requires_grad_() for x in (v, f)]
        exact = [x.double().requires_grad_() for x in (v, f)]
        grads = torch.autograd.grad(pacresize2d(*leaves, **options).square().sum(), leaves)
        wanted = torch.autograd.grad(pacresize2d(*exact, **options).square().sum(), exact)
        for grad, correct in zip(grads, wanted, strict=True):
            assert_close(grad, correct, torch.float32, "a gradient of an enlargement")
