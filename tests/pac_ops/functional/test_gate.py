"""A gate on K: K' = 1 + a (K - 1) is the plain convolution to the last bit where a is 0, and a can be learned."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from oracle import PLAIN, TOLERANCE

import pac_ops
from pac_ops.backends.choose import BACKENDS, why_not

# Options of torch's convolution, input channels, output channels and window.
CONVOLUTIONS = {
    "padded": ({"padding": 1}, 8, 12, 3),
    "strided": ({"padding": 1, "stride": 2}, 8, 12, 3),
    "dilated, 5x5": ({"padding": 4, "dilation": 2}, 4, 6, 5),
    "grouped, no padding": ({"groups": 2}, 8, 12, 3),
    "depthwise": ({"padding": 1, "groups": 8}, 8, 8, 3),
    "one pixel of padding too many": ({"padding": (2, 0), "stride": (1, 2)}, 3, 1, 3),
}
TRANSPOSED = {
    "transposed": ({"stride": 2, "padding": 1, "output_padding": 1}, 8, 12, 3),
    "transposed, grouped, dilated": ({"stride": 2, "padding": 2, "groups": 2, "dilation": 2}, 4, 6, 3),
}
ALL = CONVOLUTIONS | TRANSPOSED
CONTEXTS = {
    "recording": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def functions(kind):
    if kind in TRANSPOSED:
        return F.conv_transpose2d, pac_ops.pacconv_transpose2d
    return F.conv2d, pac_ops.pacconv2d


def tensors(kind, dtype=torch.float32, size=(11, 13)):
    """Input, K, weight, bias and options."""
    options, ins, outs, window = ALL[kind]
    groups = options.get("groups", 1)
    x = torch.randn(2, ins, *size, dtype=dtype)
    shape = (ins, outs // groups) if kind in TRANSPOSED else (outs, ins // groups)
    w, b = torch.randn(*shape, window, window, dtype=dtype), torch.randn(outs, dtype=dtype)
    out = functions(kind)[0](x, w, b, **options)
    k = torch.rand(2, 1, window, window, *out.shape[2:], dtype=torch.promote_types(dtype, torch.float32))
    return x, k, w, b, options


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kind", ALL)
def test_closed_it_is_pytorchs_to_the_last_bit(kind, context):
    x, k, w, b, options = tensors(kind)
    plain, adaptive = functions(kind)
    for shape in ((), (1,), (2,), (b.numel(),)):
        if b.numel() % max(1, *shape, 1):
            continue
        gate = torch.zeros(shape, requires_grad=True)
        for form in (torch.contiguous_format, torch.channels_last):
            given = x.contiguous(memory_format=form)
            with CONTEXTS[context]():
                expected, out = plain(given, w, b, **options), adaptive(given, k, w, b, **options, gate=gate)
            assert torch.equal(out, expected)
            assert out.dtype == expected.dtype
            assert out.is_contiguous(memory_format=form)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_on_every_backend_and_dtype(backend, dtype):
    x, k, w, b, options = tensors("padded", dtype)
    if reason := why_not(backend, x):
        pytest.skip(reason)
    with pac_ops.use_backend(backend):
        out = pac_ops.pacconv2d(x, k, w, b, **options, gate=torch.zeros(()))
    assert torch.equal(out, F.conv2d(x, w, b, **options))


@pytest.mark.parametrize(
    ("kind", "groups", "backend"),
    [("strided", 1, "inductor"), ("strided", 2, "aot_eager"), ("transposed", 1, "aot_eager")],
)
def test_closed_in_compiled_code_open_as_soon_as_a_moves(kind, groups, backend):
    x, k, w, b, options = tensors(kind)
    plain, adaptive = functions(kind)
    torch._dynamo.reset()
    run = torch.compile(
        lambda x, k, gate: adaptive(x, k, w, b, **options, gate=gate), fullgraph=True, backend=backend
    )
    gate = torch.zeros(groups, requires_grad=True)
    out = run(x, k, gate)
    assert torch.equal(out, plain(x, w, b, **options))
    out.sum().backward()
    expected = torch.autograd.grad(adaptive(x, k, w, b, **options, gate=gate).sum(), gate)[0]
    torch.testing.assert_close(gate.grad, expected, rtol=1e-3, atol=0)
    assert gate.grad.abs().min() > 0
    with torch.no_grad():
        gate += 0.5  # no new trace
        torch.testing.assert_close(run(x, k, gate), adaptive(x, (1 + k) / 2, w, b, **options))


def by_hand(kind, x, k, w, b, options, gate):
    """The plain convolution, and a of what the reference changes of it, by output channel."""
    plain, adaptive = functions(kind)
    with pac_ops.use_backend("reference"):
        change = adaptive(x, k, w, None, **options) - plain(x, w, None, **options)
    return plain(x, w, b, **options) + gate.repeat_interleave(b.numel() // gate.numel())[:, None, None] * change


@pytest.mark.parametrize("value", [0.0, -0.3, 1.7])
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("backend", ["native", *PLAIN])
def test_outputs_and_gradients(kind, backend, value):
    """Against float64: a's gradient and all others, where it is open and where it is closed."""
    given = tensors(kind, torch.float64, (5, 6))
    for groups in (1, given[3].numel()):
        leaves = [x.clone().requires_grad_() for x in given[:4]]
        gate = torch.full((groups,), value, dtype=torch.float64, requires_grad=True)
        expected = by_hand(kind, *leaves, given[4], gate)
        grad = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, [*leaves, gate], grad)
        assert wanted[-1].abs().max() > 0
        for dtype in (torch.float64, torch.float32):
            if reason := why_not(backend, torch.zeros((), dtype=dtype)):
                pytest.skip(reason)
            ours = [x.detach().to(dtype).requires_grad_() for x in (*leaves, gate)]
            with pac_ops.use_backend(backend):
                out = functions(kind)[1](*ours[:4], **given[4], gate=ours[4])
                found = torch.autograd.grad(out, ours, grad.to(dtype))
            for x, y in zip((out, *found), (expected, *wanted), strict=True):
                assert (x - y).abs().max() <= 10 * TOLERANCE[dtype] * y.abs().max()


@pytest.mark.parametrize("value", [0.0, 0.4])
def test_gradients_of_second_order(value):
    for kind in ("strided", "transposed"):
        x, k, w, b, options = tensors(kind, torch.float64, (3, 4))
        leaves = [t[:1, :].clone().requires_grad_() for t in (x, k)]
        gate = torch.tensor(value, dtype=torch.float64, requires_grad=True)

        def run(x, k, gate, kind=kind, w=w, b=b, options=options):
            return functions(kind)[1](x, k, w, b, **options, gate=gate)

        assert torch.autograd.gradcheck(run, (*leaves, gate), fast_mode=True)
        assert torch.autograd.gradgradcheck(run, (*leaves, gate), fast_mode=True)


def test_under_vmap_each_has_its_own():
    """As in ensembles of `torch.func.stack_module_state`: one closed, the others open."""
    x, k, w, b, options = tensors("padded")
    gates = torch.tensor([0.0, 0.5, 1.0])
    out = torch.vmap(lambda gate: pac_ops.pacconv2d(x, k, w, b, **options, gate=gate))(gates)
    assert torch.equal(out[0], F.conv2d(x, w, b, **options))
    torch.testing.assert_close(out[1], pac_ops.pacconv2d(x, (1 + k) / 2, w, b, **options))
    torch.testing.assert_close(out[2], pac_ops.pacconv2d(x, k, w, b, **options))

    def total(gate):
        return pac_ops.pacconv2d(x, k, w, b, **options, gate=gate).square().sum()

    slope, along = torch.func.grad(total)(gates[0]), torch.func.jvp(total, (gates[0],), (torch.ones(()),))[1]
    torch.testing.assert_close(slope, along)
    assert slope != 0


def test_a_flat_guide_leaves_k_at_1_whatever_a_is():
    x, k, w, b, options = tensors("padded")
    expected = pac_ops.pacconv2d(x, torch.ones_like(k), w, b, **options)
    for value in (-0.7, 1e-9, 0.3, 5.0):
        assert torch.equal(
            pac_ops.pacconv2d(x, torch.ones_like(k), w, b, **options, gate=torch.tensor(value)), expected
        )


@pytest.mark.parametrize(
    ("gate", "options", "reason"),
    [
        (torch.zeros(5), {}, r"gate must be \[\] or \[n\], n a divisor of the 4 outputs, got \[5\]"),
        (torch.zeros(1, 1), {}, r"got \[1, 1\]"),
        (torch.zeros(0), {}, r"got \[0\]"),
        (0.0, {}, "gate must be a tensor, got float"),
        (torch.zeros((), dtype=torch.int64), {}, "gate must have a floating dtype"),
        (torch.zeros(()), {"shared_filters": True}, "gate must be None with shared_filters=True"),
    ],
)
def test_refusals(gate, options, reason):
    x, w = torch.randn(1, 4, 5, 5), torch.randn(1, 1, 3, 3) if options else torch.randn(4, 4, 3, 3)
    with pytest.raises((TypeError, ValueError), match=reason):
        pac_ops.pacconv2d(x, torch.rand(1, 1, 3, 3, 3, 3), w, gate=gate, **options)
    if not options:
        with pytest.raises((TypeError, ValueError), match=reason):
            pac_ops.pacconv_transpose2d(x, torch.rand(1, 1, 3, 3, 7, 7), w, gate=gate)
