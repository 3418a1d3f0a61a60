"""Wrong arguments: ValueError or TypeError, one line, with the argument, what it must be and what it was."""

import pytest
import torch

import pac_ops
from pac_ops import PacConv2d, backends, pacconv2d, packernel2d, squared_distance2d

X = torch.zeros(2, 4, 8, 8)
F = torch.zeros(2, 3, 8, 8)
W = torch.zeros(6, 4, 3, 3)
K = torch.ones(2, 1, 3, 3, 6, 6)

WRONG = {
    "guide rank": (ValueError, lambda: packernel2d(F[0], 3), r"guide must be \[batch.*got \[3, 8, 8\]"),
    "guide type": (TypeError, lambda: packernel2d([1], 3), "guide must be a tensor, got list"),
    "guide dtype": (TypeError, lambda: squared_distance2d(F.int(), 3), "guide must have a floating dtype, got torch.int32"),
    "even window": (ValueError, lambda: packernel2d(F, 2), r"kernel_size must be odd.*got \(2, 2\)"),
    "half-even window": (ValueError, lambda: packernel2d(F, (3, 4)), r"kernel_size must be odd.*got \(3, 4\)"),
    "window type": (TypeError, lambda: packernel2d(F, "3"), "kernel_size must be an integer or a pair.*got '3'"),
    "window of three": (TypeError, lambda: packernel2d(F, (3, 3, 3)), r"kernel_size must be .*got \(3, 3, 3\)"),
    "window of floats": (TypeError, lambda: packernel2d(F, 3.0), "kernel_size must be .*got 3.0"),
    "window of zero": (ValueError, lambda: packernel2d(F, 0), "kernel_size must be at least 1, got 0"),
    "stride": (ValueError, lambda: packernel2d(F, 3, 0), "stride must be at least 1, got 0"),
    "dilation": (ValueError, lambda: packernel2d(F, 3, dilation=(1, -2)), r"dilation must be at least 1, got \(1, -2\)"),
    "padding": (ValueError, lambda: packernel2d(F, 3, padding=-1), "padding must be at least 0, got -1"),
    "padding word": (ValueError, lambda: packernel2d(F, 3, padding="full"), "padding must be .*got 'full'"),
    "same with stride": (ValueError, lambda: packernel2d(F, 3, 2, "same"), r"needs stride 1, got stride \(2, 2\)"),
    "window too large": (ValueError, lambda: packernel2d(F, 9), "must fit the image, got 8 x 8"),
    "input rank": (ValueError, lambda: pacconv2d(X[0], K, W), "input must be .*got"),
    "kernel shape": (ValueError, lambda: pacconv2d(X, K, W, padding=1), r"kernel must be .*= \[2, 1, 3, 3, 8, 8\], got"),
    "kernel batch": (ValueError, lambda: pacconv2d(X, K[:1], W), r"kernel must be .*got \[1, 1, 3, 3, 6, 6\]"),
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
    "guide size": (ValueError, lambda: PacConv2d(4, 6, 3)(X, F[..., 1:]), r"guide must be .*\[2, G, 8, 8\], got"),
    "guide batch": (ValueError, lambda: PacConv2d(4, 6, 3)(X, F[:1]), r"guide must be .*got \[1, 3, 8, 8\]"),
    "layer window": (ValueError, lambda: PacConv2d(4, 6, 4), "kernel_size must be odd"),
    "layer same with stride": (ValueError, lambda: PacConv2d(4, 6, 3, 2, "same"), "needs stride 1"),
    "backend": (ValueError, lambda: pac_ops.use_backend("magic").__enter__(), "must be one of cpu, reference, got 'magic'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_line(name):
    kind, call, message = WRONG[name]
    with pytest.raises(kind, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_backend_asked_for_by_name_runs_or_says_why_not():
    with pac_ops.use_backend("cpu"), pytest.raises(ValueError, match="'cpu' was asked for but cannot run: .*meta"):
        backends.choose(X.to("meta"))
    assert backends.choose(X.to("meta")) == "reference"
    assert backends.choose(X) == "cpu"
    assert backends.why_not("cpu", X.to(torch.complex64)) is not None


def test_the_environment_variable_chooses(monkeypatch):
    monkeypatch.setenv("PAC_OPS_BACKEND", "reference")
    assert backends.choose(X) == "reference"
    with pac_ops.use_backend("cpu"):  # the nearer request wins
        assert backends.choose(X) == "cpu"
    monkeypatch.setenv("PAC_OPS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="PAC_OPS_BACKEND must be one of cpu, reference, got 'gpu'"):
        packernel2d(F, 3)


def test_a_forced_backend_is_the_one_that_runs(monkeypatch):
    from pac_ops import cpu, reference

    ran = []
    for module in (cpu, reference):
        original = module.squared_distance2d
        monkeypatch.setattr(
            module, "squared_distance2d", lambda *a, _f=original, _n=module.__name__: ran.append(_n) or _f(*a)
        )
    packernel2d(F, 3)
    with pac_ops.use_backend("reference"):
        packernel2d(F, 3)
    packernel2d(F, 3)
    assert ran == ["pac_ops.cpu", "pac_ops.reference", "pac_ops.cpu"]
