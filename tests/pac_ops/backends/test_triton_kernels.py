"""The Triton kernels against the float64 oracle: on a GPU where there is one, else under Triton's interpreter.

The interpreter takes TRITON_INTERPRET=1 before Triton is imported and then holds for the whole process, so the tests
without a GPU run in a process of their own, which one test here starts. That the kernels compile for a GPU is tested
without one, too.
"""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interpreted import DEVICE, INTERPRETED, triton
from oracle import CASES, assert_close
from triton_calls import (
    DIRECT,
    DTYPES,
    LAYOUTS,
    OPERATORS,
    PRODUCTS,
    calls,
    check,
    check_call,
    on,
    on_device,
    run,
    small,
)

from pac_ops.backends import reference
from pac_ops.backends import triton as backend
from pac_ops.backends.triton import filters, gather, launch, layout, tiles
from pac_ops.geometry import Window

pytestmark = [
    pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION"),
    pytest.mark.usefixtures("poisoned"),
]


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_kernel_under_the_interpreter(which, request):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    options = ["-p", "no:cacheprovider", "-m", which]
    files = sorted(Path(__file__).parent.glob("test_triton_*.py"))
    command = [sys.executable, "-m", "pytest", *files, *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=request.config.rootpath
    )
    if "cannot run a loop" in done.stdout:
        pytest.skip("this Triton's interpreter cannot run a loop with this numpy")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


TABLE = [
    pytest.param(operator, case, DTYPES[n % 3], id=f"{operator}-{case}-{str(DTYPES[n % 3])[6:]}")
    for operator in OPERATORS
    for n, case in enumerate(DIRECT + PRODUCTS * operator.startswith("pacconv"))
]


@on_device
@pytest.mark.parametrize(("operator", "case", "dtype"), TABLE)
def test_output_and_every_gradient(operator, case, dtype):
    check(operator, case, dtype)


SWEEP = [case for case in CASES if case.height * case.width < 400]  # a larger one takes minutes to interpret


@on_device
@pytest.mark.slow
@pytest.mark.parametrize(("case", "dtype"), [(case, DTYPES[n % 3]) for n, case in enumerate(SWEEP)], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_whole_table(operator, case, dtype):
    check(operator, case, dtype)


@on_device
@pytest.mark.parametrize("laid", LAYOUTS)
@pytest.mark.parametrize("operator", ["pacconv2d", "pacconv_transpose2d", "pacpool2d", "squared_distance2d"])
def test_any_memory_layout(operator, laid):
    case = small(channels=16, out_channels=17, height=3, width=4, kernel_size=(1, 3), padding=(0, 1))
    check(operator, case, torch.float32, layout=LAYOUTS[laid])


@on_device
@pytest.mark.parametrize("operator", ["pacconv2d", "pacconv_transpose2d"])
@pytest.mark.parametrize("of_a_copy", [0, 10**9])
def test_weights_whose_channels_lie_apart(operator, of_a_copy, monkeypatch):
    """Copied, or read as they are, by what a copy is taken to cost; what is written to them is seen."""
    monkeypatch.setattr(launch, "PLANS", {})
    monkeypatch.setattr(filters, "OF_A_COPY", of_a_copy)
    case = small(channels=16, out_channels=17, height=3, width=4, kernel_size=(1, 3), padding=(0, 1))
    name, arguments = calls(operator, case, torch.float16)[0]
    for n, x in enumerate(arguments):
        if isinstance(x, torch.Tensor) and x.shape[-2:] == case.kernel_size:
            weight = torch.nn.Parameter(x, requires_grad=False)
            arguments = (*arguments[:n], weight, *arguments[n + 1 :])
    check_call(name, arguments)
    version = weight._version
    weight.data.mul_(-0.5)
    assert weight._version == version  # so that no cache could know
    check_call(name, arguments)


@on_device
@pytest.mark.parametrize("operator", ["pacconv2d", "pacconv_transpose2d", "squared_distance2d"])
def test_expanded_operands(operator):
    case = small(channels=16, out_channels=17, height=3, width=4, kernel_size=(1, 3), padding=(0, 1))
    for name, arguments in calls(operator, case, torch.float32):
        same = [x[:1].expand_as(x) if isinstance(x, torch.Tensor) else x for x in arguments]
        check_call(name, same)


DIRECT_AND_PRODUCT = {
    "pacconv2d": [small(), PRODUCTS[0]],
    "pacconv_transpose2d": [small(), PRODUCTS[0]],
    "pacpool2d": [small()],
    "pacpool2d, channel-wise": [small()],
}

EACH_KIND = [pytest.param(operator, case) for operator, cases in DIRECT_AND_PRODUCT.items() for case in cases]


@on_device
@pytest.mark.parametrize(("operator", "case"), EACH_KIND)
def test_only_the_gradients_asked_for(operator, case):
    case = dataclasses.replace(case, kernel_size=(1, 3), padding=(0, 1), batch=1, height=3, width=4)
    _, (name, (*arguments, needs)) = calls(operator, case, torch.float32)
    for wanted in itertools.product([False, True], repeat=len(needs)):
        if sum(wanted) < 2:
            check_call(name, (*arguments, wanted))


@on_device
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("operator", "case"), EACH_KIND)
def test_sums_that_do_not_depend_on_order(operator, case):
    """Where algorithms must be deterministic, sums over programs go through memory and not through atomics."""
    case = dataclasses.replace(case, kernel_size=(1, 3), padding=(0, 1), height=3)
    _, (name, arguments) = calls(operator, case, torch.float32)
    once = check_call(name, arguments)
    again = run(backend, name, on(DEVICE, arguments))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@on_device
@pytest.mark.parametrize("operator", OPERATORS)
def test_offsets_of_64_bits(operator, monkeypatch):
    monkeypatch.setattr(launch, "PLANS", {})
    monkeypatch.setattr("pac_ops.backends.triton.arguments.INT32_OFFSETS", -1)
    case = small(
        channels=16, out_channels=17, height=3, width=4, kernel_size=(1, 3), padding=(0, 1), guide_channels=2
    )
    check(operator, case, torch.float32)


@on_device
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_operands_of_different_dtypes(weight_dtype):
    case = dataclasses.replace(PRODUCTS[0], batch=1, height=3, width=4)
    for name, arguments in calls("pacconv2d", case, torch.float32):
        image, k, weight = (n + name.endswith("backward") for n in range(3))  # a gradient comes first
        arguments = list(arguments)
        for n, dtype in ((image, torch.bfloat16), (k, torch.float16), (weight, weight_dtype)):
            arguments[n] = arguments[n].to(dtype)
        actual = run(backend, name, on(DEVICE, arguments))
        exact = run(reference, name, [x.double() if isinstance(x, torch.Tensor) else x for x in arguments])
        for a, e, like in zip(actual, exact, run(reference, name, arguments), strict=True):
            assert a.dtype == like.dtype
            assert_close(a.cpu(), e, min(a.dtype, torch.float32, key=lambda x: -torch.finfo(x).eps), name)


@on_device
@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "pacconv_transpose2d"])
def test_infinity_reaches_only_what_sees_it(operator):
    """Not the transposed convolution: the oracle multiplies inserted zeros, and 0 * infinity is NaN."""
    case = small(stride=(1, 2), kernel_size=(1, 3), padding=(0, 2), channels=2, out_channels=2, height=2)
    for name, arguments in calls(operator, case, torch.float32):
        given = [x for x in arguments if isinstance(x, torch.Tensor)]
        for image in (x for x in given if x.dim() == 4 and x.shape[2:] != case.kernel_size):
            middle = image[0, 0, 0, image.shape[3] // 2]
            before = middle.item()
            middle.fill_(float("inf"))
            expected = run(reference, name, arguments)
            if name == "squared_distance2d":  # the distance of a pixel from itself is 0, whatever it holds
                expected[0][:, :, 0, 1] = 0
            if name == "gaussian_kernel2d":
                expected[0][:, :, 0, 1] = 1
            for a, e in zip(run(backend, name, on(DEVICE, arguments)), expected, strict=True):
                assert torch.equal(a.cpu().isfinite(), e.isfinite())
                torch.testing.assert_close(a.cpu().nan_to_num(0, 0, 0), e.nan_to_num(0, 0, 0), rtol=1e-4, atol=1e-4)
            middle.fill_(before)


def test_offsets_are_of_64_bits_where_only_a_gradient_is_large(monkeypatch):
    """An expanded K is small, and its gradient is not."""
    launched = []

    def launch_no_kernel(kernel, grid, arguments, device):
        launched.append(arguments)
        return lambda *tensors: None

    monkeypatch.setattr(gather, "Launch", launch_no_kernel)
    monkeypatch.setattr(tiles, "elementwise", lambda steps, channels: {"BLOCK_P": 128, "BLOCK_O": 8})
    x = torch.empty(1, 1, 2**15, 2**14, device="meta")
    k = torch.empty(1, 1, 1, 1, 1, 1, device="meta").expand(1, 1, 3, 3, 2**15, 2**14)
    window = Window((3, 3), padding=(1, 1))
    backend.pacpool2d_backward(x, x, k, window, (True, False))
    backend.pacpool2d_backward(x, x, k, window, (True, True))
    assert [each["INDEX"] for each in launched] == [triton.language.int32, triton.language.int64]


@on_device
def test_k_multiplies_the_operand_of_16_bits():
    """Their product is rounded once more: half a unit in the last place, of each, and so of the sum's norm."""
    case = small(channels=64, out_channels=17, height=4, width=5)
    (name, (input, k, weight, _, *rest)), _ = calls("pacconv2d", case, torch.float16)
    arguments = (input, 1 + k / 8, weight, None, *rest)
    (exact,) = run(reference, name, [x.double() if isinstance(x, torch.Tensor) else x for x in arguments])
    (actual,) = run(backend, name, on(DEVICE, arguments))
    error = ((actual.cpu().double() - exact).norm() / exact.norm()).item()
    assert error <= torch.finfo(torch.float16).eps / 2


@on_device
def test_k_that_bfloat16_cannot_tell_from_one():
    """K multiplies float32 in float32: rounded to 16 bits, these two would be one."""
    (name, (input, k, *rest)), _ = calls("pacconv2d", small(channels=16, out_channels=16), torch.bfloat16)
    wide = [
        run(
            backend,
            name,
            on(
                DEVICE,
                (
                    input.float(),
                    torch.full_like(k, v),
                    *(x if not isinstance(x, torch.Tensor) else x.float() for x in rest),
                ),
            ),
        )[0]
        for v in (1, 1 - 2**-12)
    ]
    assert not torch.equal(*wide)


def test_tf32_is_what_convolutions_are_allowed(monkeypatch):
    for allowed, precision in ((True, "tf32"), (False, "ieee")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert layout.precision() == precision


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="from PyTorch 2.9 on")
def test_tf32_by_the_newer_switch():
    """Where it differs from what recurrent networks may, the older one raises."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        assert layout.precision() == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
