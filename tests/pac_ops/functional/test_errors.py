"""Wrong arguments: ValueError or TypeError, one line, with the argument, what it must be and what it was."""

import pytest
import torch

import pac_ops
from pac_ops import (
    PacConv2d,
    PacConvTranspose2d,
    PacPool2d,
    mask_kernel2d,
    pacconv2d,
    pacconv_transpose2d,
    packernel2d,
    pacpool2d,
    squared_distance2d,
)
from pac_ops.backends import choose
from pac_ops.backends.native import compiled, distance

X = torch.zeros(2, 4, 8, 8)
F = torch.zeros(2, 3, 8, 8)
W = torch.zeros(6, 4, 3, 3)
K = torch.ones(2, 1, 3, 3, 6, 6)
U = torch.ones(2, 1, 3, 3, 17, 17)  # a kernel for the transposed operator with stride 2
V = torch.zeros(4, 6, 3, 3)  # its weight
M = torch.ones(2, 1, 8, 8)
A = torch.tensor(0.5)

WRONG = {
    "guide rank": (ValueError, lambda: packernel2d(F[0]), r"guide must be \[batch.*got \[3, 8, 8\]"),
    "guide type": (TypeError, lambda: packernel2d([1]), "guide must be a tensor, got list"),
    "guide dtype": (TypeError, lambda: squared_distance2d(F.int(), 3), "guide must have a floating dtype, got torch.int32"),
    "even window": (ValueError, lambda: packernel2d(F, None, 2), r"kernel_size must be odd.*got \(2, 2\)"),
    "half-even window": (ValueError, lambda: packernel2d(F, None, (3, 4)), r"kernel_size must be odd.*got \(3, 4\)"),
    "window type": (TypeError, lambda: packernel2d(F, None, "3"), "kernel_size must be an integer or a pair.*got '3'"),
    "window of three": (TypeError, lambda: packernel2d(F, None, (3, 3, 3)), r"kernel_size must be .*got \(3, 3, 3\)"),
    "window of floats": (TypeError, lambda: packernel2d(F, None, 3.0), "kernel_size must be .*got 3.0"),
    "window of zero": (ValueError, lambda: packernel2d(F, None, 0), "kernel_size must be at least 1, got 0"),
    "stride": (ValueError, lambda: packernel2d(F, None, 3, 0), "stride must be at least 1, got 0"),
    "dilation": (ValueError, lambda: packernel2d(F, dilation=(1, -2)), r"dilation must be at least 1, got \(1, -2\)"),
    "padding": (ValueError, lambda: packernel2d(F, padding=-1), "padding must be at least 0, got -1"),
    "padding word": (ValueError, lambda: packernel2d(F, padding="full"), "padding must be .*got 'full'"),
    "same with stride": (ValueError, lambda: packernel2d(F, None, 3, 2, "same"), r"needs stride 1, got stride \(2, 2\)"),
    "window too large": (ValueError, lambda: packernel2d(F, None, 9), "must fit the image, got 8 x 8"),
    "input rank": (ValueError, lambda: pacconv2d(X[0], K, W), "input must be .*got"),
    "kernel shape": (ValueError, lambda: pacconv2d(X, K, W, padding=1), r"kernel must be .*= \[2 or 1, 1, 3, 3, 8, 8\], got"),
    "kernel batch": (ValueError, lambda: pacconv2d(X, K.repeat(2, 1, 1, 1, 1, 1), W), r"kernel must be .*got \[4, 1, 3, 3, 6, 6\]"),
    "kernel type": (TypeError, lambda: pacconv2d(X, None, W), "kernel must be a tensor, got NoneType"),
    "weight rank": (ValueError, lambda: pacconv2d(X, K, W[0]), r"weight must be \[O, C/groups, kh, kw\], got"),
    "weight channels": (ValueError, lambda: pacconv2d(X, K, W[:, :3]), "weight must be .*C = 4"),
    "weight groups": (ValueError, lambda: pacconv2d(X, K, W[:5, :2], groups=2), "divisible by groups = 2"),
    "weight dtype": (TypeError, lambda: pacconv2d(X, K, W.double()), "weight must have the input's dtype torch.float32"),
    "groups": (ValueError, lambda: pacconv2d(X, K, W, groups=0), "groups must be a positive integer, got 0"),
    "bias shape": (ValueError, lambda: pacconv2d(X, K, W, torch.zeros(5)), r"bias must be \[6\], got \[5\]"),
    "bias dtype": (TypeError, lambda: pacconv2d(X, K, W, torch.zeros(6).half()), "bias must have the input's dtype"),
    "device": (ValueError, lambda: pacconv2d(X, K, W.to("meta")), "weight must be on the input's device cpu, got meta"),
    "neither": (TypeError, lambda: PacConv2d(4, 6, 3)(X), "either a guide or a kernel"),
    "both": (TypeError, lambda: PacConv2d(4, 6, 3)(X, F, K), "either a guide or a kernel"),
    "layer input type": (TypeError, lambda: PacConv2d(4, 6, 3)([1], F), "input must be a tensor, got list"),
    "layer input rank": (ValueError, lambda: PacConv2d(4, 6, 3)(X[0], F), r"input must be \[batch.*got \[4, 8, 8\]"),
    "layer guide type": (TypeError, lambda: PacConv2d(4, 6, 3)(X, [1]), "guide must be a tensor, got list"),
    "layer guide rank": (ValueError, lambda: PacConv2d(4, 6, 3)(X, F[0]), r"guide must be \[batch.*got \[3, 8, 8\]"),
    "layer guide dtype": (TypeError, lambda: PacConv2d(4, 6, 3)(X, F.int()), "guide must have a floating dtype"),
    "layer guide device": (ValueError, lambda: PacConv2d(4, 6, 3)(X, F.to("meta")), "guide must be on the input's device cpu"),
    "layer kernel type": (TypeError, lambda: PacConv2d(4, 6, 3)(X, None, [1]), "kernel must be a tensor, got list"),
    "kernel device": (ValueError, lambda: pacconv2d(X, K.to("meta"), W), "kernel must be on the input's device cpu, got meta"),
    "guide size": (ValueError, lambda: PacConv2d(4, 6, 3)(X, F[..., 1:]), r"guide must be .*\[2 or 1, G, 8, 8\], got"),
    "guide batch": (ValueError, lambda: PacConv2d(4, 6, 3)(X[:1], F), r"guide must be .*\[1, G, 8, 8\], got \[2, 3, 8, 8\]"),
    "layer window": (ValueError, lambda: PacConv2d(4, 6, 4), "kernel_size must be odd"),
    "layer same with stride": (ValueError, lambda: PacConv2d(4, 6, 3, 2, "same"), "needs stride 1"),
    "kernel_type": (ValueError, lambda: packernel2d(F, kernel_type="cosine"), "kernel_type must be .*got 'cosine'"),
    "kernel_type numbers": (ValueError, lambda: packernel2d(F, kernel_type="inv_a_b"), "kernel_type must be .*got 'inv_a_b'"),
    "kernel_type of no text": (ValueError, lambda: packernel2d(F, kernel_type=3), "kernel_type must be .*got 3"),
    "smoothing": (ValueError, lambda: packernel2d(F, smooth_kernel_type="median_3"), "smooth_kernel_type must .*'median_3'"),
    "even smoothing": (ValueError, lambda: packernel2d(F, smooth_kernel_type="full_4"), "odd n, got 'full_4'"),
    "full without filter": (ValueError, lambda: packernel2d(F, smooth_kernel_type="full_3"), "smooth_kernel must be given"),
    "filter without smoothing": (ValueError, lambda: packernel2d(F, smooth_kernel=torch.ones(1, 1, 3, 3)), "must be None for"),
    "filter shape": (
        ValueError,
        lambda: packernel2d(F, smooth_kernel_type="full_3", smooth_kernel=torch.ones(3, 3)),
        r"smooth_kernel must be \[1, 1, 3, 3\] .*got \[3, 3\]",
    ),
    "filter type": (
        TypeError,
        lambda: packernel2d(F, smooth_kernel_type="full_3", smooth_kernel=[1]),
        "smooth_kernel must be a tensor, got list",
    ),
    "alpha of a gaussian": (ValueError, lambda: packernel2d(F, inv_alpha=A), 'inv_alpha must be None for kernel_type "gaussian"'),
    "alpha type": (TypeError, lambda: packernel2d(F, kernel_type="inv_1_1", inv_alpha=0.5), "inv_alpha must be a tensor, got float"),
    "alpha shape": (
        ValueError,
        lambda: packernel2d(F, kernel_type="inv_1_1", inv_alpha=A.expand(3)),
        r"inv_alpha must be one number, got \[3\]",
    ),
    "lambda shape, channel-wise": (
        ValueError,
        lambda: packernel2d(F, kernel_type="inv_1_1", inv_lambda=A.expand(2), channel_wise=True),
        r"inv_lambda must be one number, or \[3\], got \[2\]",
    ),
    "mask type": (TypeError, lambda: packernel2d(F, 3), "mask must be a tensor, got int"),
    "mask shape": (ValueError, lambda: packernel2d(F, M[:, 0]), r"mask must be \[B or 1, 1, H, W\] = \[2 or 1, 1, 8, 8\], got \[2, 8, 8\]"),
    "mask device": (ValueError, lambda: packernel2d(F, M.to("meta")), "mask must be on the guide's device cpu, got meta"),
    "mask of the output's size": (
        ValueError,
        lambda: packernel2d(torch.zeros(2, 3, 17, 17), torch.ones(2, 1, 17, 17), stride=2, transposed=True),
        r"mask must be .*\[2 or 1, 1, 8, 8\], got \[2, 1, 17, 17\]",
    ),
    "output_padding": (ValueError, lambda: packernel2d(F, output_padding=1), "output_padding must be 0 unless transposed=True"),
    "output_padding too large": (
        ValueError,
        lambda: pacconv_transpose2d(X, U, V, stride=2, output_padding=2),
        "output_padding must be smaller than the stride or the dilation, 2 and 1, got 2",
    ),
    "ceil_mode transposed": (ValueError, lambda: packernel2d(F, transposed=True, ceil_mode=True), "ceil_mode must be False"),
    "guide of no output size": (
        ValueError,
        lambda: packernel2d(F, stride=2, transposed=True),
        r"guide must have the output's height, 2 \* n \+ 3 for an input of n \+ 1, got 8",
    ),
    "transposed padding word": (TypeError, lambda: packernel2d(F, padding="same", transposed=True), "padding must .*got 'same'"),
    "given mask type": (TypeError, lambda: mask_kernel2d(K, None), "mask must be a tensor, got NoneType"),
    "given mask rank": (ValueError, lambda: mask_kernel2d(K, M[0]), r"mask must be \[B, 1, H, W\], got \[1, 8, 8\]"),
    "given mask size": (ValueError, lambda: mask_kernel2d(K, M[..., 1:]), r"mask must be of the input's height and width"),
    "given kernel rank": (ValueError, lambda: mask_kernel2d(K[0], M), r"kernel must be \[B, 1 or C, kh, kw, Ho, Wo\], got"),
    "shared weight": (ValueError, lambda: pacconv2d(X, K, W, shared_filters=True), r"weight must be \[1, 1, kh, kw\] with shared"),
    "shared groups": (
        ValueError,
        lambda: pacconv2d(X, K, W[:1, :1], groups=2, shared_filters=True),
        "groups must be 1 with shared_filters=True, got 2",
    ),
    "transposed weight": (ValueError, lambda: pacconv_transpose2d(X, U, V[:3], stride=2), "weight must be .* with C = 4"),
    "transposed kernel": (
        ValueError,
        lambda: pacconv_transpose2d(X, K, V, stride=2),
        r"kernel must be .*= \[2 or 1, 1, 3, 3, 17, 17\], got \[2, 1, 3, 3, 6, 6\]",
    ),
    "transposed bias": (
        ValueError,
        lambda: pacconv_transpose2d(X, U, V, torch.zeros(4), stride=2),
        r"bias must be \[6\], got \[4\]",
    ),
    "transposed padding": (TypeError, lambda: pacconv_transpose2d(X, U, V, padding="same"), "padding must .*got 'same'"),
    "transposed to nothing": (ValueError, lambda: pacconv_transpose2d(X, U, V, padding=9), "must leave an output, got one of -8"),
    "pool kernel": (ValueError, lambda: pacpool2d(X, K, 3, None), r"kernel must be \[B or 1, 1 or C, .*\[2 or 1, 1 or 4, 3, 3, 2, 2\], got"),
    "pool kernel size": (ValueError, lambda: pacpool2d(X, K, 2), r"kernel_size must be odd.*got \(2, 2\)"),
    "pool window too large": (ValueError, lambda: pacpool2d(X, K, 9), "must fit the image, got 8 x 8"),
    "pool padding": (TypeError, lambda: pacpool2d(X, K, 3, 1, "same"), "padding must be .*got 'same'"),
    "pool channels": (
        ValueError,
        lambda: PacPool2d(3, channel_wise=True)(X, F),
        "guide must have the input's 4 channels with channel_wise=True, got 3",
    ),
    "pool numbers a channel": (ValueError, lambda: PacPool2d(3, channels=4), "channels must be None unless channel_wise=True, got 4"),
    "transposed guide": (
        ValueError,
        lambda: PacConvTranspose2d(4, 6, 3, 2)(X, F),
        r"guide must be .*the output's height and width, \[2 or 1, G, 17, 17\], got \[2, 3, 8, 8\]",
    ),
    "transposed padding mode": (ValueError, lambda: PacConvTranspose2d(4, 6, 3, padding_mode="reflect"), "zeros"),
    "transposed layer padding": (TypeError, lambda: PacConvTranspose2d(4, 6, 3, padding="same"), "padding must .*got 'same'"),
    "transposed window": (ValueError, lambda: PacConvTranspose2d(4, 6, 4, 2), "kernel_size must be odd"),
    "filler": (ValueError, lambda: PacConv2d(4, 6, 3, filler="zero"), "filler must be .*got 'zero'"),
    "linear channels": (ValueError, lambda: PacConv2d(4, 6, 3, filler="linear"), "out_channels must equal in_channels = 4 .*got 6"),
    "linear window": (
        ValueError,
        lambda: PacConvTranspose2d(4, 4, 3, 4, filler="linear"),
        "kernel_size of at least 2 \\* stride - 1 = 7 .*got kernel_size 3",
    ),
    "shared channels": (ValueError, lambda: PacConv2d(4, 6, 3, shared_filters=True), "out_channels must equal in_channels = 4"),
    "layer mask": (ValueError, lambda: PacConv2d(4, 6, 3)(X, F, mask=M[:, :, 1:]), r"mask must be .*got \[2, 1, 7, 8\]"),
    "layer mask type": (TypeError, lambda: PacConv2d(4, 6, 3)(X, F, mask=1), "mask must be a tensor, got int"),
    "backend": (ValueError, lambda: pac_ops.use_backend("magic").__enter__(), "must be one of triton, native, cpu, reference, got 'magic'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_line(name):
    kind, call, message = WRONG[name]
    with pytest.raises(kind, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_backend_asked_for_by_name_runs_or_says_why_not():
    with pac_ops.use_backend("cpu"), pytest.raises(ValueError, match="'cpu' was asked for but cannot run: .*meta"):
        choose.backend_for(X.to("meta"))
    assert choose.backend_for(X.to("meta")) == "reference"
    assert choose.backend_for(X) == choose.backend_for(X.half()) == ("cpu" if compiled.why_not_built() else "native")
    assert choose.why_not("cpu", X.to(torch.complex64)) is not None
    with (
        pac_ops.use_backend("native"),
        pytest.raises(ValueError, match="'native' was .* cannot run: it has no .*float8_e5m2"),
    ):
        packernel2d(F.to(torch.float8_e5m2))


def test_without_the_compiled_kernels_plain_torch_runs(monkeypatch):
    monkeypatch.setattr(compiled, "_load", lambda: "it was not compiled")
    assert {choose.backend_for(x) for x in (X, X.double(), X.half(), X.bfloat16())} == {"cpu"}
    with pac_ops.use_backend("native"), pytest.raises(ValueError, match="cannot run: it was not compiled"):
        packernel2d(F)
    assert "native: no, it was not compiled" in pac_ops.explain(X)


def test_compiled_kernels_of_an_older_version_run_what_they_have(monkeypatch):
    """As after a pull, where the package is installed from a folder."""
    guide = torch.randn(1, 2, 5, 6, requires_grad=True)
    expected = torch.autograd.grad(packernel2d(guide)[0].sum(), guide)[0]
    monkeypatch.setattr(compiled, "has", lambda function: False)
    monkeypatch.setattr(distance, "has", lambda function: False)
    assert "native: no, it was compiled before it had float64" in pac_ops.explain(X.double())
    torch.testing.assert_close(torch.autograd.grad(packernel2d(guide)[0].sum(), guide)[0], expected)


def test_explain_says_which_and_why():
    told = pac_ops.explain(X.to(torch.float8_e5m2)).splitlines()
    assert told == [
        "triton: no, it runs on cuda tensors, and these are on cpu",
        "native: no, it has no torch.float8_e5m2",
        "cpu: no, it has no torch.float8_e5m2",
        "reference: chosen, the first that can run",
    ]
    with pac_ops.use_backend("reference"):
        assert "reference: chosen, asked for by name" in pac_ops.explain(X)
    with pac_ops.use_backend("cpu"):
        assert "cpu: asked for by name, but it runs on cpu tensors, and these are on meta" in pac_ops.explain(
            X.to("meta")
        )


def test_the_environment_variable_chooses(monkeypatch):
    monkeypatch.setenv("PAC_OPS_BACKEND", "reference")
    assert choose.backend_for(X) == "reference"
    with pac_ops.use_backend("cpu"):  # the nearer request wins
        assert choose.backend_for(X) == "cpu"
    monkeypatch.setenv("PAC_OPS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="PAC_OPS_BACKEND must be one of triton, native, cpu, reference, got 'gpu'"):
        packernel2d(F)


def test_a_forced_backend_is_the_one_that_runs(monkeypatch):
    from pac_ops.backends import blocked, reference

    ran = []
    for module in (blocked, reference):
        original = module.gaussian_kernel2d
        monkeypatch.setattr(
            module, "gaussian_kernel2d", lambda *a, _f=original, _n=module.__name__: ran.append(_n) or _f(*a)
        )
    monkeypatch.setenv("PAC_OPS_BACKEND", "cpu")
    packernel2d(F)
    with pac_ops.use_backend("reference"):
        packernel2d(F)
    packernel2d(F)
    assert ran == ["pac_ops.backends.blocked", "pac_ops.backends.reference", "pac_ops.backends.blocked"]
