"""Every backend against the float64 oracle: output, K, and each gradient."""

import inspect

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import CASES, TOLERANCE, Case, assert_close, pairs

import pac_ops
from pac_ops import geometry
from pac_ops.backends import choose, native, reference
from pac_ops.backends.blocked import rows
from pac_ops.backends.choose import why_not
from pac_ops.backends.native import compiled, double

pytestmark = pytest.mark.filterwarnings("ignore:a 1x1 window")


def check(case, dtype, backend, layout=torch.contiguous_format):
    inputs = case.inputs(dtype)
    exact = {k: None if v is None else v.double() for k, v in inputs.items()}
    expected = case.run(exact, "reference")
    laid = {k: v if v is None or v.dim() != 4 else v.contiguous(memory_format=layout) for k, v in inputs.items()}
    actual = case.run(laid, backend)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        # K is float32 for everything narrower than float64, and is held to that.
        held_to = torch.float32 if name == "kernel" and dtype != torch.float64 else dtype
        assert value.dtype == held_to, name
        assert_close(value, expected[name], held_to, f"{backend} {name}")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), pairs(TOLERANCE))
def test_output_and_every_gradient(backend, dtype, case):
    check(case, dtype, backend)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_blocks_of_one_row(case, monkeypatch):
    """Every row its own block, so that all block edges, halos and partial blocks are there."""
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", 1)
    check(case, torch.float64, "cpu")


@pytest.mark.parametrize("case", CASES[:12], ids=str)
def test_blocks_with_a_partial_last_one(case, monkeypatch):
    elements = case.channels * case.kernel_size[0] * case.kernel_size[1] * case.width * 2
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", elements)
    check(case, torch.float64, "cpu")


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64]))
def test_memory_that_was_never_written_is_never_read(backend, dtype):
    """Allocations filled with NaN: whatever a backend leaves unwritten would show."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for case in CASES:
            check(case, dtype, backend)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64]))
def test_gaussians_of_any_distance(backend, dtype):
    steps = torch.linspace(0, 20, 20_001, dtype=dtype)
    ends = torch.tensor([float("inf"), float("nan"), 1e30], dtype=dtype)
    guide = torch.stack([torch.zeros(20_004, dtype=dtype), torch.cat([steps, ends])], dim=1).view(1, 1, 1, -1)
    with pac_ops.use_backend(backend):
        kernel = pac_ops.packernel2d(guide, None, (1, 3), padding=(0, 1))[0]
        distance = pac_ops.squared_distance2d(guide, (1, 3), padding=(0, 1))
    expected = torch.exp(-0.5 * distance.double())
    far = distance > 170  # where float32 has fewer digits, or none
    torch.testing.assert_close(kernel[~far].double(), expected[~far], rtol=1e-6, atol=0, equal_nan=True)
    assert (kernel[far] < 1e-36).all()
    assert kernel[distance == 0].eq(1).all()


def exactly(inputs):
    return {k: None if v is None else v.double() for k, v in inputs.items()}


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64]))
def test_any_memory_layout(backend, dtype):
    case = Case(height=10, width=12, groups=2)
    inputs = case.inputs(dtype)
    expected = case.run(exactly(inputs), "reference")
    layouts = {
        "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "every second column of a wider tensor": lambda x: torch.stack([x, x + 1], -1).flatten(-2)[..., ::2],
        "transposed": lambda x: x.mT.contiguous().mT,
        "expanded": lambda x: x[:1].expand_as(x),
    }
    for name, layout in layouts.items():
        changed = {k: layout(v) if v is not None and v.dim() == 4 else v for k, v in inputs.items()}
        wanted = expected
        if name == "expanded":
            wanted = case.run(exactly(changed), "reference")
        actual = case.run(changed, backend)
        for key, value in actual.items():
            assert_close(value, wanted[key], dtype, f"{backend} {name} {key}")


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64]))
def test_only_the_gradients_asked_for(backend, dtype):
    case = Case()
    inputs = case.inputs(dtype)
    expected = case.run(exactly(inputs), "reference")
    for wanted in ("input", "guide", "weight", "bias"):
        x = {k: v.detach().requires_grad_(k == wanted) for k, v in inputs.items()}
        with pac_ops.use_backend(backend):
            kernel = case.kernel(x["guide"])
            out = pac_ops.pacconv2d(x["input"], kernel, x["weight"], x["bias"], *case.window[1:])
            out.backward(x["grad"])
        assert_close(x[wanted].grad, expected[f"d{wanted}"], dtype, wanted)
        assert all(x[k].grad is None for k in x if k != wanted)


@st.composite
def random_cases(draw):
    groups, odd = draw(st.integers(1, 3)), st.sampled_from([1, 3, 5])
    case = Case(
        batch=draw(st.integers(1, 3)),
        channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        guide_channels=draw(st.integers(1, 5)),
        height=draw(st.integers(1, 8)),
        width=draw(st.one_of(st.integers(1, 8), st.integers(16, 60))),
        kernel_size=draw(st.tuples(odd, odd)),
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=draw(st.tuples(st.integers(0, 4), st.integers(0, 4))),
        dilation=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        groups=groups,
        bias=draw(st.booleans()),
    )
    ho, wo = pac_ops.geometry.Window(*case.window).output_size(case.height, case.width)
    assume(ho > 0 and wo > 0)
    return case


@settings(max_examples=150, deadline=None, derandomize=True)
@given(random_cases())
def test_random_combinations(case):
    check(case, torch.float64, "cpu")
    check(case, torch.float32, "cpu")
    if why_not("native", torch.zeros(())) is None:  # where it is missing, the tests above say so
        for lanes in LANES:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(compiled, "lanes", lambda lanes=lanes: lanes)
                check(case, torch.float32, "native")
        check(case, torch.float64, "native")


# Of vectors, where they are compiled in and this CPU has them.
LANES = [8] if compiled.lanes() == 8 else [8, 16]

# Blocks of the compiled kernels: forward 128 input channels of 9 taps and 64 to 256 pixels, or by lines 4 rows of
# vectors of 32 outputs; backward 384 output channels and 256 pixels; distances of strided windows 8 channels;
# depthwise 2 channels, bands of 8 rows or fewer, 4 vectors of a row and then fewer; with vectors of 16 4 channels, 2
# vectors, and windows of 3, 5 and 7 columns apart.
BEYOND_ONE_BLOCK = [
    Case(channels=140, out_channels=7, height=6, width=23),
    Case(channels=5, out_channels=5, groups=5, height=11, width=61, padding=(1, 1)),
    Case(channels=4, out_channels=4, groups=4, height=9, width=24, dilation=(2, 3), padding=(2, 3)),
    Case(
        channels=3, out_channels=3, groups=3, height=14, width=17, stride=(2, 1), padding=(0, 2), kernel_size=(3, 5)
    ),
    Case(channels=40, out_channels=7, height=20, width=23),
    Case(channels=3, out_channels=400, height=5, width=40),
    Case(
        channels=36, out_channels=26, groups=2, height=17, width=33, stride=(2, 2), kernel_size=(5, 3), padding=(2, 1)
    ),
    Case(channels=2, out_channels=3, height=30, width=30, kernel_size=(3, 3), dilation=(16, 4), padding=(16, 4)),
    Case(channels=6, out_channels=6, groups=6, height=12, width=40, kernel_size=(7, 7), padding=(3, 3)),
    Case(channels=9, out_channels=9, groups=9, height=7, width=33, kernel_size=(5, 5), padding=(2, 2)),
    Case(channels=4, out_channels=4, groups=4, height=6, width=15, kernel_size=(3, 9), padding=(1, 4)),
    Case(channels=24, out_channels=30, height=9, width=62, padding=(1, 2)),
    Case(channels=18, out_channels=12, groups=3, height=7, width=95, kernel_size=(5, 3), padding=(2, 1)),
    Case(channels=5, out_channels=44, height=7, width=70),
    Case(channels=5, out_channels=30, height=9, width=140, stride=(2, 2)),
    Case(channels=70, out_channels=32, height=9, width=56),
    Case(channels=5, out_channels=6, guide_channels=19, height=7, width=128, stride=(2, 2), padding=(1, 1)),
    Case(
        channels=3,
        out_channels=6,
        guide_channels=9,
        height=8,
        width=91,
        stride=(1, 2),
        padding=(2, 3),
        kernel_size=(5, 7),
    ),
    Case(
        channels=3,
        out_channels=2,
        guide_channels=11,
        height=20,
        width=70,
        stride=(3, 3),
        padding=(1, 4),
        dilation=(1, 2),
        kernel_size=(3, 5),
    ),
]


@pytest.fixture(params=[1, 5])
def threads(request):
    """As many threads as the kernels are told to have."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Vectors of channels, and 4 or 2 of them at a time; 4 outputs of a row, or 2, where all their windows are inside.
SIDE_BY_SIDE = [
    Case(channels=140, out_channels=140, groups=140, height=9, width=13, kernel_size=(7, 7), padding=(3, 3)),
    Case(channels=40, out_channels=40, groups=40, height=8, width=11, stride=(2, 3), kernel_size=(3, 5), bias=False),
    Case(channels=17, out_channels=17, groups=17, height=10, width=9, dilation=(2, 3), padding=(2, 4)),
    Case(channels=9, out_channels=9, groups=9, height=3, width=4, kernel_size=(5, 5), padding=(2, 2)),
]


@pytest.mark.skipif(why_not("native", torch.zeros(())) is not None, reason=str(why_not("native", torch.zeros(()))))
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("case", SIDE_BY_SIDE, ids=str)
def test_channels_side_by_side(case, threads, lanes, monkeypatch):
    monkeypatch.setattr(compiled, "lanes", lambda: lanes)
    check(case, torch.float32, "native", torch.channels_last)


@pytest.mark.skipif(why_not("native", torch.zeros(())) is not None, reason=str(why_not("native", torch.zeros(()))))
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("channels", "own"), [(1, False), (3, False), (9, False), (3, True), (9, True)])
@pytest.mark.parametrize(("stride", "width"), [(1, 13), (1, 33), (2, 21)])
def test_pools_by_a_kernel_that_is_packed_or_read_where_it_lies(stride, width, channels, own, lanes, monkeypatch):
    """A K of each channel's, or of one channel, serves once: but at its end it is packed."""
    monkeypatch.setattr(compiled, "lanes", lambda: lanes)
    x, size = torch.randn(2, channels, 10, width), ((9 + stride) // stride, (width - 1) // stride + 1)
    kernel = torch.rand(2, channels if own else 1, 3, 5, *size)
    with pac_ops.use_backend("reference"):
        expected = pac_ops.pacpool2d(x.double(), kernel.double(), (3, 5), stride, (1, 2))
    assert_close(pac_ops.pacpool2d(x, kernel, (3, 5), stride, (1, 2)), expected, torch.float32, "pools")


@pytest.mark.skipif(why_not("native", torch.zeros(())) is not None, reason=str(why_not("native", torch.zeros(()))))
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("case", BEYOND_ONE_BLOCK, ids=str)
def test_compiled_kernels_beyond_one_block(case, threads, lanes, monkeypatch):
    monkeypatch.setattr(compiled, "lanes", lambda: lanes)
    check(case, torch.float32, "native")
    twice = [case.run(case.inputs(torch.float32), "native") for _ in range(2)]
    assert all(torch.equal(value, twice[1][name]) for name, value in twice[0].items())  # sums in a fixed order


@pytest.mark.skipif(why_not("native", torch.zeros(())) is not None, reason=str(why_not("native", torch.zeros(()))))
@pytest.mark.parametrize("case", BEYOND_ONE_BLOCK, ids=str)
def test_compiled_kernels_of_double_precision_at_any_size(case, threads, monkeypatch):
    monkeypatch.setattr(double, "SMALL", 2**60)
    check(case, torch.float64, "native")


@pytest.mark.skipif(why_not("native", torch.zeros(())) is not None, reason=str(why_not("native", torch.zeros(()))))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("stride", "width"), [(1, 20), (1, 64), (2, 140)])
def test_what_is_infinite_stays_under_the_windows_that_see_it(stride, width, lanes, dtype, monkeypatch):
    """Where a row of an image ends the next begins in memory, and vectors read on."""
    monkeypatch.setattr(compiled, "lanes", lambda: lanes)
    x = torch.randn(2, 3, 9, width, dtype=dtype)
    x[:, :, 4, 0] = torch.inf
    x[:, :, 6, -1] = torch.nan
    size = (9, width) if stride == 1 else (5, width // 2)
    tensors = {"input": x, "kernel": torch.rand(2, 1, 3, 3, *size), "weight": torch.randn(4, 3, 3, 3)}
    tensors = {name: value.to(dtype) for name, value in tensors.items()}
    gradient = torch.randn(2, 4, *size, dtype=dtype)
    gradient[:, :, 2, -1] = torch.inf

    def run(backend):
        leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
        with pac_ops.use_backend(backend):
            out = pac_ops.pacconv2d(leaves["input"], leaves["kernel"], leaves["weight"], stride=stride, padding=1)
        return out, *torch.autograd.grad(out, [leaves["input"], leaves["kernel"]], gradient)

    for actual, expected in zip(run("native"), run("reference"), strict=True):
        assert torch.equal(actual.isfinite(), expected.isfinite())
        assert_close(actual[actual.isfinite()], expected[actual.isfinite()], torch.float32, "what is finite")


@pytest.mark.skipif(why_not("native", torch.zeros(())) is not None, reason=str(why_not("native", torch.zeros(()))))
@pytest.mark.parametrize("lanes", LANES)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_window_for_every_pixel(lanes, data):
    """Each pair of pixels is then computed once, as if an image were one row; windows may be larger than the image."""
    odd, apart = st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2, 16])
    batch, channels, height = (data.draw(st.integers(1, most)) for most in (2, 20, 12))
    width = data.draw(st.one_of(st.integers(1, 40), st.integers(400, 600)))
    size, dilation = data.draw(st.tuples(odd, odd)), data.draw(st.tuples(apart, apart))
    padding = (size[0] // 2 * dilation[0], size[1] // 2 * dilation[1])
    window = geometry.Window(size, (1, 1), padding, dilation)
    guide = torch.randn(batch, channels, height, width)
    # What vectors see beside the ends of rows and images: seen by their own windows, and by no other.
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    guide[(..., *data.draw(st.sampled_from(corners)))] = data.draw(st.sampled_from([torch.inf, torch.nan, 1.0]))
    expected = reference.squared_distance2d(guide.double(), window)
    expected[:, :, size[0] // 2, size[1] // 2] = 0  # by definition, not inf - inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "lanes", lambda: lanes)
        distance, gaussian = native.squared_distance2d(guide, window), native.gaussian_kernel2d(guide, window)
    torch.testing.assert_close(distance.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(gaussian.double(), (-expected / 2).exp(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["triton", "native", "native.double", "native.half", "cpu"])
def test_every_backend_has_the_oracles_functions(name):
    """And with the same arguments: which one is called does not depend on the backend."""
    module = choose.load(name)
    for function in (f for f in vars(reference).values() if inspect.isfunction(f)):
        if function.__module__ == reference.__name__ and not function.__name__.startswith("_"):
            arguments = inspect.signature(getattr(module, function.__name__)).parameters
            assert list(arguments) == list(inspect.signature(function).parameters), function.__name__
