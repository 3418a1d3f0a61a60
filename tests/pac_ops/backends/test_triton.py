"""The Triton kernels against the float64 oracle: on a GPU where there is one, else under Triton's interpreter.

The interpreter takes TRITON_INTERPRET=1 before Triton is imported and then holds for the whole process, so the tests
without a GPU run in a process of their own, which one test here starts. That the kernels compile for a GPU is tested
without one, too.
"""

import dataclasses
import inspect
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pretended_gpu
import pytest
import torch
from interpreted import DEVICE, INTERPRETED, triton
from oracle import CASES, Case, assert_close
from torch._subclasses.fake_tensor import FakeTensorMode

import pac_ops
from pac_ops import PacConv2d, PacConvTranspose2d, PacPool2d
from pac_ops.backends import choose, reference
from pac_ops.backends import triton as backend
from pac_ops.backends.triton import gather, launch, weight_gradient
from pac_ops.geometry import Window

NO_GPU = "no GPU: test_every_kernel_under_the_interpreter runs this on the CPU"

pytestmark = pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION")


def on_device(test):
    """Mark a test that runs on a GPU, or interpreted; tile sizes are not timed, since each takes seconds to compile."""
    skip = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason=NO_GPU)
    return pytest.mark.gpu(pytest.mark.usefixtures("in_full_float32", "untuned")(skip(test)))


def on_gpu(test):
    """Mark a test that runs on a GPU alone."""
    missing = INTERPRETED or not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="on the GPU itself")(test))


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_kernel_under_the_interpreter(which, request):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    options = ["-p", "no:cacheprovider", "-m", which]
    files = [__file__, Path(__file__).with_name("test_triton_enlargement.py")]
    command = [sys.executable, "-m", "pytest", *files, *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=request.config.rootpath
    )
    if "cannot run a loop" in done.stdout:
        pytest.skip("this Triton's interpreter cannot run a loop with this numpy")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that is allocated and not written holds NaN."""

    def poison(allocate):
        return lambda *args, **kwargs: allocate(*args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture
def in_full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def untuned(monkeypatch):
    for module in (gather, weight_gradient):
        monkeypatch.setattr(module._DOT, "_tuner", None)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# --- calls ------------------------------------------------------------------------------------------------


def calls(operator, case, dtype):
    """Name and arguments of an operator's function, and of its backward where it has one of its own."""
    generator = torch.Generator().manual_seed(1)

    def make(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    window, b, c, o, g = Window(*case.window), case.batch, case.channels, case.out_channels, case.guide_channels
    image, size = (case.height, case.width), window.output_size(case.height, case.width)
    bias = make(o) if case.bias else None
    if operator == "pacconv_transpose2d":
        size = window.transposed_size(*image, (window.stride[0] - 1, 0))
        if min(size) < 1:
            pytest.skip("this padding leaves a transposed convolution no output")
    k = make(b, 1, *window.kernel_size, *size, dtype=torch.float32)
    if operator == "pacconv2d":
        weight = make(o, c // case.groups, *window.kernel_size)
        shared = make(b, c, *image), k, weight
    elif operator == "pacconv_transpose2d":
        weight = make(c, o // case.groups, *window.kernel_size)
        shared = make(b, c, *image), k, weight
    elif operator == "pacpool2d":
        shared = make(b, c, *image), k
    elif operator == "pacpool2d, channel-wise":
        shared = make(b, c, *image), make(b, c, *window.kernel_size, *size, dtype=torch.float32)
    elif operator in ("squared_distance2d", "gaussian_kernel2d"):
        shared = (make(b, g, *image),)
    else:
        shared = make(b, g, *size), make(b, g, *image)
    name = operator.split(",")[0]
    if name.startswith("pacconv"):
        grad = make(b, o, *size)
        return (name, (*shared, bias, window, case.groups)), (
            f"{name}_backward",
            (grad, *shared, window, case.groups, (True, True, True)),
        )
    if name == "pacpool2d":
        return (name, (*shared, window)), (f"{name}_backward", (make(b, c, *size), *shared, window, (True, True)))
    if name == "gaussian_kernel2d":  # its gradient is the distance's
        return ((name, (*shared, window)),)
    asymmetric = (operator.endswith("asymmetric"),) if name == "centred_distance2d" else ()
    return (name, (*shared, window, *asymmetric)), (f"{name}_backward", (k, *shared, window, *asymmetric))


OPERATORS = [
    "pacconv2d",
    "pacconv_transpose2d",
    "pacpool2d",
    "pacpool2d, channel-wise",
    "squared_distance2d",
    "gaussian_kernel2d",
    "centred_distance2d",
    "centred_distance2d, asymmetric",
]


def run(module, name, arguments):
    """What a function returns, as a tuple."""
    result = getattr(module, name)(*arguments)
    return (result,) if isinstance(result, torch.Tensor) else result


def on(device, arguments):
    return tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments)


def check_call(name, arguments, layout=lambda x: x):
    exact = tuple(x.double() if isinstance(x, torch.Tensor) else x for x in arguments)
    expected = run(reference, name, exact)
    given = tuple(layout(x) if isinstance(x, torch.Tensor) and x.dim() == 4 else x for x in on(DEVICE, arguments))
    actual = run(backend, name, given)
    assert len(actual) == len(expected)
    for n, (a, e, like) in enumerate(zip(actual, expected, run(reference, name, arguments), strict=True)):
        assert (a is None) == (e is None)
        if a is not None:
            assert a.is_contiguous()
            assert a.dtype == like.dtype
            # What is small beside 1 may be a difference of equal numbers.
            assert_close(a.cpu(), e, a.dtype, f"{name} {n}", floor=1e-3)
    return actual


def check(operator, case, dtype, **kwargs):
    for name, arguments in calls(operator, case, dtype):
        check_call(name, arguments, **kwargs)


# --- the table --------------------------------------------------------------------------------------------

# With a batch of two, two tiles of pixels, the second partial; two of channels where there are more than four.
SMALL = Case(channels=2, out_channels=3, height=5, width=7, kernel_size=(1, 3), padding=(0, 1))


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


DIRECT = [
    small(kernel_size=(3, 3), padding=(1, 1)),
    small(bias=False, kernel_size=(1, 1), padding=(0, 0)),
    small(channels=4, out_channels=6, groups=2, padding=(1, 2), guide_channels=5),
    small(channels=5, out_channels=5, groups=5, kernel_size=(3, 1), padding=(1, 0), guide_channels=1),  # depthwise
    small(stride=(2, 2), kernel_size=(3, 1)),
    small(stride=(1, 3), dilation=(2, 2), channels=1, out_channels=2, height=4),
    small(
        stride=(4, 2), dilation=(2, 1), kernel_size=(3, 1), channels=1, out_channels=2, height=9
    ),  # taps of no phase
    small(padding=(3, 4), channels=1, out_channels=2),  # some windows see nothing
    small(dilation=(16, 16), padding=(0, 16), channels=1, out_channels=1, height=4, width=18),
    small(height=1, width=1, channels=1, guide_channels=0),
    small(batch=0),
]
PRODUCTS = [
    small(channels=20, out_channels=18, kernel_size=(3, 1), padding=(1, 0), guide_channels=9),
    small(channels=34, out_channels=32, groups=2, kernel_size=(1, 3), padding=(0, 1), stride=(1, 2), bias=False),
    small(channels=17, out_channels=16, kernel_size=(3, 1), padding=(0, 0), stride=(2, 1), dilation=(2, 1), height=8),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]  # every operator meets each, in either kind of kernel
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


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second column of a wider tensor": lambda x: torch.stack([x, x + 1], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.mT.contiguous().mT,
}


@on_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", ["pacconv2d", "pacconv_transpose2d", "pacpool2d", "centred_distance2d"])
def test_any_memory_layout(operator, layout):
    case = small(channels=16, out_channels=17, height=3, width=4, kernel_size=(1, 3), padding=(0, 1))
    check(operator, case, torch.float32, layout=LAYOUTS[layout])


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
    monkeypatch.setattr(launch, "INT32_OFFSETS", -1)
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
    monkeypatch.setattr(gather, "launch", lambda kernel, grid, like, arguments, meta: launched.append(arguments))
    monkeypatch.setattr(gather, "elementwise_tiles", lambda x, channels: {"BLOCK_P": 128, "BLOCK_O": 8})
    x = torch.empty(1, 1, 2**15, 2**14, device="meta")
    k = torch.empty(1, 1, 1, 1, 1, 1, device="meta").expand(1, 1, 3, 3, 2**15, 2**14)
    window = Window((3, 3), padding=(1, 1))
    backend.pacpool2d_backward(x, x, k, window, (True, False))
    backend.pacpool2d_backward(x, x, k, window, (True, True))
    assert [arguments["INDEX"] for arguments in launched] == [triton.language.int32, triton.language.int64]


@on_device
def test_k_that_bfloat16_cannot_tell_from_one():
    """K multiplies sums in float32: rounded to the input's dtype, these two would be one."""
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
        assert launch.precision() == precision


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="from PyTorch 2.9 on")
def test_tf32_by_the_newer_switch():
    """Where it differs from what recurrent networks may, the older one raises."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        assert launch.precision() == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("name", ["triton", "native", "cpu"])
def test_every_backend_has_the_oracles_functions(name):
    """And with the same arguments: which one is called does not depend on the backend."""
    module = choose.load(name)
    for function in (f for f in vars(reference).values() if inspect.isfunction(f)):
        if function.__module__ == reference.__name__ and not function.__name__.startswith("_"):
            arguments = inspect.signature(getattr(module, function.__name__)).parameters
            assert list(arguments) == list(inspect.signature(function).parameters), function.__name__


# --- the operators with this backend --------------------------------------------------------------------------


def example(name, dtype, device):
    """A layer and its arguments: input and guide, both leaves."""
    torch.manual_seed(0)
    make = {
        "conv": lambda: PacConv2d(3, 4, (1, 3), padding=(0, 1)),
        "transposed": lambda: PacConvTranspose2d(
            3, 2, (3, 1), 2, (1, 0), 1, kernel_type="inv_0.2_0.7", normalize_kernel=True
        ),
        "pool": lambda: PacPool2d((1, 3), 1, (0, 1), kernel_type="inv_0.2_0.7_asym", smooth_kernel_type="gaussian"),
    }
    scale = 2 if name == "transposed" else 1
    leaves = torch.randn(1, 3, 2, 3), torch.randn(1, 2, 2 * scale, 3 * scale) / 2
    return make[name]().to(device, dtype), [x.to(device, dtype).requires_grad_() for x in leaves]


def gradients_of_two_orders(layer, leaves):
    leaves = [*leaves, *layer.parameters()]
    first = torch.autograd.grad(layer(*leaves[:2]).square().sum(), leaves, create_graph=True)
    return [*first, *torch.autograd.grad(sum(x.square().sum() for x in first), leaves)]


@on_device
@pytest.mark.parametrize("name", ["conv", "transposed", "pool"])
def test_gradients_of_layers_of_two_orders(name, monkeypatch):
    with pac_ops.use_backend("reference"):
        expected = gradients_of_two_orders(*example(name, torch.float64, DEVICE))
    monkeypatch.setenv("PAC_OPS_BACKEND", "triton")
    for n, (a, e) in enumerate(
        zip(gradients_of_two_orders(*example(name, torch.float32, DEVICE)), expected, strict=True)
    ):
        assert_close(a.detach(), e, 2e-4, f"{name} {n}", floor=1e-3)


@on_device
@pytest.mark.parametrize("how", ["compile", "vmap", "forward mode", "autocast"])
def test_paths_of_torch(how):
    layer, (x, guide) = example("conv", torch.float32, DEVICE)
    with pac_ops.use_backend("reference"):
        expected = layer(x, guide)
        if how == "forward mode":
            _, expected = torch.func.jvp(layer, (x, guide), (x, guide))
    with pac_ops.use_backend("triton"):
        if how == "compile":
            torch._dynamo.reset()
            actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, guide)
            actual.sum().backward()
            assert guide.grad.abs().sum() > 0
        elif how == "vmap":
            actual = torch.func.vmap(lambda x, f: layer(x[None], f[None])[0])(x, guide)
        elif how == "forward mode":
            _, actual = torch.func.jvp(layer, (x, guide), (x, guide))
        else:
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                actual = layer(x, guide)
            assert actual.dtype == torch.bfloat16
            actual.sum().backward()
            assert layer.weight.grad.dtype == guide.grad.dtype == torch.float32
    bound = 2e-2 if how == "autocast" else 1e-4
    assert_close(actual.detach().cpu(), expected.detach().double().cpu(), bound, how)


@pytest.mark.skipif(not INTERPRETED, reason="under the interpreter")
def test_the_interpreter_is_only_taken_by_name():
    x = torch.zeros(1)
    assert choose.backend_for(x) != "triton"
    assert pac_ops.explain(x).startswith("triton: no, on cpu tensors its kernels are interpreted, which takes asking")
    with pac_ops.use_backend("triton"):
        assert choose.backend_for(x) == "triton"
        assert pac_ops.explain(x).startswith("triton: chosen, asked for by name")
        with pytest.raises(ValueError, match="'triton' was asked for but cannot run: it has no torch.float64"):
            choose.backend_for(x.double())


# --- choosing it ----------------------------------------------------------------------------------------------


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


# --- compiled for a GPU that is not there ---------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch):
    """Launches compile their kernel and do no more; tile sizes are timed, all alike. Names and code of the compiled."""
    compile_and_run, kernels = triton.runtime.jit.JITFunction.run, []

    def compile_only(self, *args, warmup, **kwargs):
        kernel = compile_and_run(self, *args, warmup=True, **kwargs)
        kernels.append((self.fn.__qualname__, kernel.asm["ptx"]))

    def timed(run, quantiles):
        run()
        return [1.0, 1.0, 1.0]

    pretended_gpu.pretend(monkeypatch)
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
    for module in (gather, weight_gradient):
        monkeypatch.setattr(module._DOT._tuner, "_do_bench", timed)
        monkeypatch.setattr(module._DOT._tuner, "cache", {})
    return kernels


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.skipif(torch.cuda.is_available(), reason="here they run")
@pytest.mark.parametrize(
    "operator",
    ["pacconv2d", "pacconv2d, depthwise", "pacpool2d, channel-wise", "squared_distance2d", OPERATORS[-1]]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("pacconv_transpose2d", "pacpool2d", "centred_distance2d")
    ],
)
def test_kernels_compile_for_a_gpu(operator, compiled, monkeypatch):
    """With the default tiles, for channels side by side; matrix products on Hopper's matrix units."""
    for module in (gather, weight_gradient):
        monkeypatch.setattr(module._DOT, "_tuner", None)
    groups = 64 if operator.endswith("depthwise") else 1
    case = Case(channels=64, out_channels=64, guide_channels=16, height=32, width=32, groups=groups)
    for name, arguments in calls(operator.removesuffix(", depthwise"), case, torch.bfloat16):
        laid = [LAYOUTS["channels last"](x) if getattr(x, "ndim", 0) == 4 else x for x in arguments]
        run(backend, name, laid)
    assert len(compiled) >= 2
    assert all("wgmma" in code for kernel, code in compiled if kernel == "_dot_kernel")


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled there")
@pytest.mark.skipif(torch.cuda.is_available(), reason="here they run")
@pytest.mark.parametrize(
    ("operator", "dtype", "most"),
    [
        ("pacconv2d", torch.bfloat16, 2),
        *(
            pytest.param(operator, dtype, None, marks=pytest.mark.slow)
            for operator in ("pacconv2d", "pacconv_transpose2d")
            for dtype in DTYPES
        ),
    ],
)
def test_tile_sizes_are_timed_and_kept(operator, dtype, most, compiled, monkeypatch):
    """The first call compiles each of the sizes and the second none."""
    _, (name, arguments) = calls(operator, Case(channels=64, out_channels=32, height=8, width=8), dtype)
    products = [module._DOT for module in (gather, weight_gradient)]
    for product in products:
        monkeypatch.setattr(product, "_metas", product._metas[:most])
    for _ in range(2):
        run(backend, name, arguments)
    tried = [len(product._tuner.configs_timings) for product in products]
    assert min(tried) >= 2
    assert [kernel for kernel, _ in compiled].count("_dot_kernel") == sum(tried) + 4
    assert [len(product._tuner.cache) for product in products] == [1, 1]


# --- sizes that only a GPU is fast enough for ---------------------------------------------------------------

LARGE = [
    Case(channels=64, out_channels=96, guide_channels=70, height=33, width=47),
    Case(
        channels=130, out_channels=257, height=29, width=31, kernel_size=(5, 5), padding=(32, 32), dilation=(16, 16)
    ),
    Case(channels=96, out_channels=96, groups=96, height=40, width=41, kernel_size=(7, 7), padding=(3, 3)),
    Case(channels=512, out_channels=512, groups=32, height=17, width=33, stride=(2, 2)),
    Case(batch=2, channels=256, out_channels=256, guide_channels=128, height=64, width=64),
]


@on_gpu
@pytest.mark.usefixtures("in_full_float32", "untuned")
@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_large(operator, case):
    check_large(operator, case, {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2})


@on_gpu
@pytest.mark.parametrize("operator", ["pacconv2d", "pacconv_transpose2d"])
def test_tile_sizes_that_were_timed(operator):
    """The timed runs leave nothing behind in what is added to."""
    check_large(operator, LARGE[-1], {torch.bfloat16: 1.6e-2})
    assert gather._DOT._tuner.cache
    assert weight_gradient._DOT._tuner.cache


def check_large(operator, case, bounds):
    """By the norm of the error: sums here are of up to 10^5 products, and the oracle runs on the GPU in float64."""
    for dtype, bound in bounds.items():
        for name, arguments in calls(operator, case, dtype):
            given = on("cuda", arguments)
            expected = run(reference, name, tuple(x.double() if isinstance(x, torch.Tensor) else x for x in given))
            for layout in (lambda x: x, LAYOUTS["channels last"]):
                laid = tuple(layout(x) if isinstance(x, torch.Tensor) and x.dim() == 4 else x for x in given)
                for n, (a, e) in enumerate(zip(run(backend, name, laid), expected, strict=True)):
                    error = ((a.double() - e).norm() / e.norm().clamp_min(1e-30)).item()
                    assert error <= bound, f"{name} {n} {dtype}: {error:.2e}"  # NaN is not <= anything


@on_gpu
@pytest.mark.usefixtures("in_full_float32")
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_runs_the_launches(dynamic):
    """And times their tile sizes itself, on the first run, which leaves nothing behind either."""
    layer = PacConv2d(64, 64, 3, padding=1).cuda()
    x, guide = (torch.randn(2, c, 32, 32, device="cuda", requires_grad=True) for c in (64, 16))
    leaves = [x, guide, *layer.parameters()]

    def output_and_gradients(run):
        out = run(x, guide / 4)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    expected = output_and_gradients(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    for _ in range(2):
        for n, (a, e) in enumerate(zip(output_and_gradients(compiled), expected, strict=True)):
            assert ((a - e).norm() / e.norm()).item() <= 1e-5, n


@on_gpu
@pytest.mark.usefixtures("untuned")
def test_tf32_where_convolutions_may(monkeypatch):
    case = Case(channels=128, out_channels=128, height=32, width=32)
    (name, arguments), _ = calls("pacconv2d", case, torch.float32)
    given = on("cuda", arguments)
    (exact,) = run(reference, name, tuple(x.double() if isinstance(x, torch.Tensor) else x for x in given))
    errors = {}
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        (out,) = run(backend, name, given)
        errors[allowed] = ((out - exact).norm() / exact.norm()).item()
    assert errors[False] < 1e-6 < errors[True] < 1e-3, errors


@on_gpu
def test_more_than_2_to_31_elements():
    """Offsets beyond 32 bits, for real: 4 GiB of input."""
    x = torch.randn(1, 32, 8200, 8200, device="cuda").to(torch.bfloat16)
    assert x.numel() > 2**31
    k = torch.ones(1, 1, 1, 1, 8200, 8200, device="cuda")
    weight = torch.randn(16, 32, 1, 1, device="cuda").to(torch.bfloat16)
    out = backend.pacconv2d(x, k, weight, None, Window((1, 1)), 1)
    expected = torch.nn.functional.conv2d(x[:, :, -8:].double(), weight.double())
    assert_close(out[:, :, -8:].cpu(), expected.cpu(), torch.bfloat16, "last rows")
