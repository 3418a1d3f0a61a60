"""When the Triton backend is taken."""

import warnings

import pytest
import torch
from interpreted import INTERPRETED
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_calls import DTYPES

import pac_ops
from pac_ops.backends import choose

pytestmark = [
    pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION"),
    pytest.mark.usefixtures("poisoned"),
]


def gpu_tensor(dtype):
    """A tensor of a GPU that need not exist."""
    try:
        with FakeTensorMode():
            return torch.empty(1, dtype=dtype, device="cuda")
    except RuntimeError:
        pytest.skip("no fake tensors of cuda here")


@pytest.fixture
def newly_warning():
    choose._warn.cache_clear()
    yield
    choose._warn.cache_clear()


@pytest.mark.usefixtures("newly_warning")
@pytest.mark.skipif(INTERPRETED, reason="the same in either process")
def test_what_a_gpu_takes(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in DTYPES:
            assert choose.backend_for(gpu_tensor(dtype)) == "triton"
    assert pac_ops.explain(gpu_tensor(torch.float16)).splitlines() == [
        "triton: chosen, the first that can run",
        "native: no, it runs on cpu tensors, and these are on cuda:0",
        "cpu: no, it runs on cpu tensors, and these are on cuda:0",
        "reference: could run",
    ]


LACKS = {
    "a dtype": (torch.float64, {}, "it has no torch.float64"),
    "Triton": (torch.float32, {"pac_ops.backends.choose._why_no_triton": lambda: "there is none"}, "there is none"),
    "a new enough GPU": (
        torch.float32,
        {"torch.cuda.is_available": lambda: True, "torch.cuda.get_device_capability": lambda device: (7, 5)},
        "Triton supports GPUs of compute capability 8.0 and above",
    ),
}


@pytest.mark.usefixtures("newly_warning")
@pytest.mark.skipif(INTERPRETED, reason="the same in either process")
@pytest.mark.parametrize("what", LACKS)
def test_a_gpu_that_lacks_something_falls_back_and_warns_once(what, monkeypatch):
    dtype, replaced, reason = LACKS[what]
    x = gpu_tensor(dtype)
    for name, value in replaced.items():
        monkeypatch.setattr(name, value)
    with pytest.warns(UserWarning, match=f"slow reference path on this GPU.*'triton' cannot run: {reason}"):
        assert choose.backend_for(x) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose.backend_for(x) == "reference"
    assert pac_ops.explain(x).startswith(f"triton: no, {reason}")
    with pac_ops.use_backend("triton"), pytest.raises(ValueError, match=f"cannot run: {reason}"):
        choose.backend_for(x)


@pytest.mark.skipif(INTERPRETED, reason="not under the interpreter")
def test_cpu_tensors_are_refused(monkeypatch):
    monkeypatch.setenv("PAC_OPS_BACKEND", "triton")
    with pytest.raises(ValueError, match="cannot run: it runs on cuda tensors, and these are on cpu"):
        choose.backend_for(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 was set after its kernels were imported"):
        choose.backend_for(torch.zeros(1))
