"""Calls as the published code takes them: accepted where nothing speaks against it, else one line says what to write."""

import pytest
import torch
from torch import nn

import pac_ops
from pac_ops import (
    PacConv2d,
    PacConvTranspose2d,
    PacCRF,
    PacCRFLoose,
    PacPool2d,
    create_position_feats,
    create_YXRGB,
    mask_kernel2d,
    pacconv2d,
    pacconv_transpose2d,
    packernel2d,
    pacpool2d,
)

D = torch.float64
X, G, IMAGE = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6), torch.rand(2, 3, 6, 6)
W = torch.randn(4, 4, 3, 3)
K = packernel2d(G, padding=1)[0]
UP = packernel2d(torch.randn(2, 3, 12, 12), None, 3, 2, 1, 1, transposed=True)[0]


def conv(**options):
    return PacConv2d(4, 4, 3, padding=1, **options)


NO_COPIES = "leave it out, or ask for a backend with pac_ops.use_backend"
REFUSED = {
    "native_impl of PacConv2d": (lambda: conv(native_impl=True), rf"^PacConv2d has no argument 'native_impl': {NO_COPIES}"),
    "native_impl of PacConvTranspose2d": (lambda: PacConvTranspose2d(4, 4, 3, native_impl=False), rf"^PacConvTranspose2d .*{NO_COPIES}"),
    "native_impl of PacPool2d": (lambda: PacPool2d(3, native_impl=True), rf"^PacPool2d has .*{NO_COPIES}"),
    "native_impl of PacCRF": (lambda: PacCRF(3, native_impl=True), rf"^PacCRF has .*{NO_COPIES}"),
    "native_impl of PacCRFLoose": (lambda: PacCRFLoose(3, native_impl=True), rf"^PacCRFLoose has .*{NO_COPIES}"),
    "native_impl of packernel2d": (lambda: packernel2d(G, native_impl=True), rf"^packernel2d has .*{NO_COPIES}"),
    "native_impl of pacconv2d": (lambda: pacconv2d(X, K, W, padding=1, native_impl=True), rf"^pacconv2d has .*{NO_COPIES}"),
    "native_impl of pacconv_transpose2d": (
        lambda: pacconv_transpose2d(X, UP, W, None, 2, 1, 1, native_impl=True),
        rf"^pacconv_transpose2d has .*{NO_COPIES}",
    ),
    "native_impl of pacpool2d": (lambda: pacpool2d(X, K, 3, padding=1, native_impl=True), rf"^pacpool2d has .*{NO_COPIES}"),
    "input_2d": (lambda: conv()(input_2d=X, guide=G), "^PacConv2d has no argument 'input_2d': write input=$"),
    "input_2d of pooling": (lambda: PacPool2d(3)(input_2d=X, guide=G), "^PacPool2d has no argument 'input_2d': write input=$"),
    "input_for_kernel": (
        lambda: PacConvTranspose2d(4, 4, 3, 2)(X, input_for_kernel=G),
        "^PacConvTranspose2d has no argument 'input_for_kernel': write guide=$",
    ),
    "packernel2d(input=)": (lambda: packernel2d(input=G), "^packernel2d has no argument 'input': write guide=$"),
    "create_YXRGB(scales=)": (
        lambda: create_YXRGB(IMAGE, scales=30.0),
        "^create_YXRGB has no argument 'scales': write yx_scale= and rgb_scale=$",
    ),
    "unbatched input": (lambda: conv()(X[0], G), r"^input must be \[batch.*got \[4, 6, 6\]: write input\[None\]$"),
    "unbatched guide": (lambda: conv()(X, G[0]), r"^guide must be \[batch.*got \[3, 6, 6\]: write guide\[None\]$"),
    "unbatched image": (lambda: create_YXRGB(IMAGE[0], 3.0, 1.0), r"^image must be .*: write image\[None\]$"),
    "unbatched unary": (lambda: PacCRF(4)(X[0], []), r"^unary must be .*: write unary\[None\]$"),
    "not RGB": (
        lambda: create_YXRGB(IMAGE[:, :1], 3.0, 1.0),
        r"^image must have 3 channels, got 1: of others, write torch.cat\(\[create_position_feats\(\(H, W\), yx_scale, B\), image",
    ),
    "guide and kernel": (
        lambda: conv()(X, G, K),
        r"^give either a guide or a kernel: layer\(input, guide\) or layer\(input, None, kernel\)$",
    ),
    "output_padding": (
        lambda: PacConvTranspose2d(4, 4, 3, 2, 1, 2),
        r"^output_padding must be smaller than .*, 2 and 1, got 2: each pixel that F.pad\(input, .* adds is 2 of the output$",
    ),
    "filler pool": (lambda: conv(filler="pool"), '^filler must be "uniform" or "linear", got \'pool\': PacPool2d pools; to start'),
    "filler crf": (lambda: conv(filler="crf"), "^filler must be .*got 'crf': PacCRF starts its filters itself"),
    "filler crf_pool": (lambda: conv(filler="crf_pool"), "^filler must be .*got 'crf_pool': PacCRF starts its filters"),
    "another filler": (lambda: conv(filler="zeros"), "^filler must be .*got 'zeros'$"),
    "nd2col": (lambda: pac_ops.nd2col(X, 3), "^pac_ops has no nd2col.*: write torch.nn.functional.unfold$"),
    "compute_kernel": (lambda: conv().compute_kernel(G), r"^PacConv2d has no compute_kernel: write packernel2d\(guide, mask"),
    "compute_kernel of pooling": (lambda: PacPool2d(3).compute_kernel(G), "^PacPool2d has no compute_kernel: write pack"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_says_what_to_write_instead(name):
    run, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=message) as error:
        run()
    assert "\n" not in str(error.value)


def test_a_keyword_that_nobody_has_is_pythons_affair():
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        conv()(X, G, nonsense=1)


def test_a_larger_output_padding_is_a_padded_input():
    """As the error says: the zeros of a pixel more are those that output_padding stands for."""
    plain = nn.functional.conv_transpose2d
    more = plain(nn.functional.pad(X, (0, 1, 0, 1)), W, None, 2, 1, 0)  # of output_padding=2
    inside = plain(X, W, None, 2, 1, 1)
    torch.testing.assert_close(more[..., :12, :12], inside)
    assert more.shape[-1] == inside.shape[-1] + 1


# --- a guide, a kernel or a mask of one image ---------------------------------------------------------------

LAYERS = {
    "conv": lambda **o: PacConv2d(4, 4, 3, padding=1, **o),
    "conv, replicate": lambda **o: PacConv2d(4, 4, 3, padding=1, padding_mode="replicate", **o),
    "conv, shared": lambda **o: PacConv2d(4, 4, 3, padding=1, shared_filters=True, **o),
    "conv, depthwise": lambda **o: PacConv2d(4, 4, 3, padding=1, groups=4, **o),
    "transposed": lambda **o: PacConvTranspose2d(4, 4, 3, 2, 1, 1, **o),
    "pool": lambda **o: PacPool2d(3, 2, 1, **o),
    "pool, ceil": lambda **o: PacPool2d(3, 2, 0, ceil_mode=True, **o),
    "pool, by channel": lambda **o: PacPool2d(3, padding=1, channel_wise=True, **o),
}


@pytest.mark.parametrize("backend", ["native", "cpu", "reference"])
@pytest.mark.parametrize("mask", [None, "of one", "of each"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_guide_of_one_image_serves_the_batch(name, normalize, mask, backend):
    if (reason := pac_ops.backends.choose.why_not(backend, X)) is not None:
        pytest.skip(reason)
    layer = LAYERS[name](normalize_kernel=normalize)
    size = 12 if name == "transposed" else 6
    guide = torch.randn(1, 4, size, size, requires_grad=True)
    seen = None if mask is None else (torch.rand(1 if mask == "of one" else 3, 1, 6, 6) > 0.3)
    x = torch.randn(3, 4, 6, 6, requires_grad=True)

    def run(guide, seen):
        out = layer(x, guide, mask=seen)
        out, output_mask = out if isinstance(out, tuple) else (out, None)
        return out, output_mask, *torch.autograd.grad(out.square().sum(), (x, leaf, *layer.parameters()))

    leaf = guide
    with pac_ops.use_backend(backend):
        actual = run(guide, seen)
        expected = run(guide.expand(3, -1, -1, -1), None if seen is None else seen.expand(3, -1, -1, -1))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_a_kernel_of_one_image_serves_the_batch():
    kernel, mask = K[:1], torch.rand(2, 1, 6, 6) > 0.3
    whole = kernel.expand(2, -1, -1, -1, -1, -1)
    assert torch.equal(pacconv2d(X, kernel, W, padding=1), pacconv2d(X, whole, W, padding=1))
    assert torch.equal(pacpool2d(X, kernel, 3, padding=1), pacpool2d(X, whole, 3, padding=1))
    up = UP[:1]
    args = (W, None, 2, 1, 1)
    assert torch.equal(
        pacconv_transpose2d(X, up, *args), pacconv_transpose2d(X, up.expand(2, -1, -1, -1, -1, -1), *args)
    )
    assert torch.equal(conv_with(W)(X, None, kernel), conv_with(W)(X, None, whole))
    for one, all_of in ((kernel, whole), (whole, whole)):
        for seen in (mask, mask[:1]):
            actual = mask_kernel2d(one, seen, padding=1)
            expected = mask_kernel2d(all_of, seen.expand(2, -1, -1, -1), padding=1)
            assert all(torch.equal(a.expand_as(e), e) for a, e in zip(actual, expected, strict=True))


def conv_with(weight):
    layer = conv(bias=False)
    layer.weight.data.copy_(weight)
    return layer


def test_a_layer_with_a_guide_of_one_image_compiles_at_any_batch():
    layer = conv()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 4, 6, 6)
        torch.testing.assert_close(compiled(x, G[:1]), layer(x, G[:1]))


# --- the CRF ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [PacCRF, PacCRFLoose])
def test_a_single_feature_serves_all_kernels(make):
    crf = make(4, 2, pairwise_kernels=[{}, {"compat_type": "potts", "blur": 2}])
    assert crf.num_pairwise_kernels == 2
    assert torch.equal(crf(X, G), crf(X, [G, G]))


@pytest.mark.parametrize("make", [PacCRF, PacCRFLoose])
@pytest.mark.parametrize("blur", [1, 4])
def test_a_kernel_that_no_feature_steers_needs_none(make, blur, monkeypatch):
    crf = make(4, 2, pairwise_kernels=[{"compat_type": "na", "blur": blur}, {"blur": blur}]).requires_grad_(False)
    expected = crf(X, [G, G])
    torch.testing.assert_close(crf(X, [None, G]), expected)
    monkeypatch.setattr(pac_ops.crf.mean_field, "MOST_HELD", 0)
    torch.testing.assert_close(crf(X, [None, G]), expected)


@pytest.mark.parametrize("make", [PacCRF, PacCRFLoose])
@pytest.mark.parametrize("channels", [1, 4])
def test_steps_begin_where_they_are_told_to(make, channels, monkeypatch):
    """Two steps are one step, and one from where that ended."""
    unary, two = torch.randn(2, channels, 6, 6), make(channels, 2, pairwise_kernels=[{}]).requires_grad_(False)
    one = make(channels, 1, pairwise_kernels=[{}]).requires_grad_(False)
    last = {k.replace("steps.1.", "steps.0."): v for k, v in two.state_dict().items() if not k.startswith("steps.0.")}
    first = make(channels, 1, pairwise_kernels=[{}]).requires_grad_(False)
    first.load_state_dict({k: v for k, v in two.state_dict().items() if not k.startswith("steps.1.")})
    one.load_state_dict(last)
    between = first(unary, G)
    kept = between.clone()
    torch.testing.assert_close(one(unary, G, logQ=between), two(unary, G))
    monkeypatch.setattr(pac_ops.crf.mean_field, "MOST_HELD", 0)
    torch.testing.assert_close(one(unary, G, logQ=between), two(unary, G))
    assert torch.equal(between, kept)


@pytest.mark.parametrize("make", [PacCRF, PacCRFLoose])
def test_reset_parameters(make):
    kernels = [{}, {"compat_type": "2d"}, {"compat_type": "potts", "spatial_filter": False, "pairwise_weight": 2.0}]
    crf = make(3, 2, unary_weight=0.7, perturbed_init=False, pairwise_kernels=kernels)
    first = {name: x.clone() for name, x in crf.state_dict().items()}
    for parameter in crf.parameters():
        parameter.data.add_(1.0)
    crf.reset_parameters()
    assert all(torch.equal(x, first[name]) for name, x in crf.state_dict().items())
    perturbed = make(3, 2, pairwise_kernels=[{}])
    before = next(m for m in perturbed.modules() if isinstance(m, PacConv2d)).weight.clone()
    perturbed.reset_parameters()
    after = next(m for m in perturbed.modules() if isinstance(m, PacConv2d)).weight
    assert 0 < (after - before).abs().max() <= 0.001001


def test_what_is_not_learned_is_no_parameter_to_reset():
    crf = PacCRF.from_densecrf(3)
    before = {name: x.clone() for name, x in crf.state_dict().items()}
    crf.reset_parameters()
    assert all(torch.equal(x, before[name]) for name, x in crf.state_dict().items())


def test_pooling_steps_by_one():
    assert PacPool2d(5)(X, G).shape == (2, 4, 2, 2)
    assert PacPool2d(3, None)(X, G).shape == (2, 4, 2, 2)
    assert pacpool2d(X, K, 3, padding=1).shape == X.shape


def test_features_of_other_images():
    """What the error of `create_YXRGB` says to write, on three channels."""
    written = torch.cat([create_position_feats((6, 6), 3.0, 2), IMAGE / 0.5], 1)
    torch.testing.assert_close(written, create_YXRGB(IMAGE, 3.0, 0.5))
