"""Files in the published layout, migrated and loaded, give what the published networks give, by an oracle in float64."""

import published_files as files
import published_oracle as oracle
import pytest
import torch

import hotswap
from hotswap.checkpoint.read import read
from hotswap.zoo import providers
from recipes import building, published

MEAN = torch.tensor([104.007, 116.669, 122.679], dtype=torch.float64)[:, None, None]  # BGR


def doubled(state):
    return {name: x.double() for name, x in state.items()}


def migrated(tmp_path, state, writer, model=None, **options):
    """The network of the checkpoint that `migrate` wrote, in float64, and what it said."""
    files.WRITERS[writer](state, tmp_path / "theirs.pth")
    told = published.migrate(tmp_path / "theirs.pth", tmp_path / "ours.safetensors", model=model, options=options)
    network = hotswap.load(tmp_path / "ours.safetensors", model=providers.build(told.architecture, trusted=True))
    assert read(tmp_path / "ours.safetensors").metadata.images.protocol == "published"
    return network.double().eval(), told


def agree(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-11 * theirs.abs().max()


UPSAMPLING = [(factor, lite, "pickle") for factor in (4, 8, 16) for lite in (False, True)]


@pytest.mark.parametrize(("factor", "lite", "writer"), [*UPSAMPLING, (4, True, "zip"), (4, True, "tar")])
def test_joint_upsampling(tmp_path, factor, lite, writer):
    state = files.upsampling(factor, lite)
    network, told = migrated(tmp_path, state, writer)
    low, guide = torch.rand(2, 2, 3, 2, dtype=torch.float64), torch.rand(2, 3, 3 * factor, 2 * factor).double()
    with torch.no_grad():
        theirs = oracle.upsampling(doubled(state), low, guide)
        agree(network(low, guide), theirs)
        # Loaded as it is, without a word, the file gives something else: what it is migrated for.
        network.load_state_dict(doubled(state))
        assert (network(low, guide) - theirs).abs().max() > 0.01 * theirs.abs().max()
    assert told.network == f"PacJointUpsample{'Lite' * lite}"
    assert sum("mirrored" in change.what for change in told.changes) == {4: 2, 8: 3, 16: 4}[factor]


@pytest.mark.parametrize("factor", [4, 8])
def test_djif(tmp_path, factor):
    state = files.djif()
    network, told = migrated(tmp_path, state, "pickle")
    low, guide = torch.rand(1, 2, 3, 4, dtype=torch.float64), torch.rand(1, 3, 3 * factor, 4 * factor).double()
    with torch.no_grad():
        agree(network(low, guide), oracle.djif(doubled(state), low, guide))
    assert (told.network, network.enlarge) == ("DJIF", "bilinear")


@pytest.fixture
def image():
    return torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seen(image):
    """As our networks take it, and as the published ones do."""
    bgr = 255 * image.flip(1)
    return (255 * image - MEAN.flip(0)), bgr - MEAN


@pytest.mark.parametrize("form", ["fcn8s", "fcn8saltpad", "fcn8spac"])
def test_fcn8s(tmp_path, monkeypatch, image, form):
    files.narrow(monkeypatch)
    state = files.fcn()
    network, told = migrated(tmp_path, state, "tar", form)
    ours, theirs = seen(image)
    with torch.no_grad():
        expected = {
            other: oracle.fcn8s(doubled(state), theirs, other) for other in ("fcn8s", "fcn8saltpad", "fcn8spac")
        }
        agree(network(ours), expected.pop(form))
        # The forms are told apart: each is far from the others.
        assert all((network(ours) - x).abs().max() > 1e-4 * x.abs().max() for x in expected.values())
    assert bool(told.swapped) == (form == "fcn8spac")


def test_hot_swapped_layers_follow_their_guide(tmp_path, monkeypatch, image):
    files.narrow(monkeypatch)
    network, _ = migrated(tmp_path, files.fcn(), "zip", "fcn8spac")
    ours, _ = seen(image)
    with torch.no_grad():
        swapped, plain = network(ours), hotswap.revert(network)(ours)
    assert (swapped - plain).abs().max() > 1e-4 * plain.abs().max()  # so that the test of their outputs tests them


CRFS = {
    "fcn8s_crfi5p4d5641p4d5161": ((64, 16), {}, {}),
    "fcn8s_crfi5p4d5321": ((32,), {}, {}),
    "fcn8spac_crfi5p4d5641p4d5161": ((64, 16), {}, {}),
    "fcn8saltpad_crfi3p4d321": ((2,), {"steps": 3, "kernel_size": 3}, {}),
    "fcn8s_crfi5lp4d5641p4d5161": ((64, 16), {"loose": True}, {}),
    "fcn8sfrozen_crfi2p4d541": ((4,), {"steps": 2}, {}),
    "fcn8s_crfi5p2d5162": ((16,), {"compat_type": "2d", "blur": 2}, {}),
    "fcn8s_convcrf": ((1,), {"compat_type": "2d", "kernel_size": 11, "blur": 4}, {}),
    "fcn8spac_convcrf": ((1, 1), {"compat_type": "2d", "blur": 2}, {"blur": 2}),
}


FIXED = ("fcn8s_crfi5p4d5321", "fcn8s_crfi5lp4d5641p4d5161", "fcn8s_convcrf")


@pytest.mark.parametrize(
    ("model", "constant"), [*((model, False) for model in CRFS), *((model, True) for model in FIXED)]
)
def test_crfs(tmp_path, monkeypatch, image, model, constant):
    files.narrow(monkeypatch)
    dilations, options, given = CRFS[model]
    state = files.crf(dilations, **options)
    if constant:  # with fixed weighting, files do not hold the weight of the unary term
        state = {name: x for name, x in state.items() if not name.endswith("unary_weight")}
    network, told = migrated(tmp_path, state, "pickle", model, **given)
    ours, theirs = seen(image)
    backbone = {
        name.removeprefix("backbone."): x for name, x in doubled(state).items() if name.startswith("backbone.")
    }
    with torch.no_grad():
        unary = oracle.fcn8s(backbone, theirs, model.split("_")[0].replace("frozen", ""))
        agree(network.backbone(ours), unary)
        expected = oracle.crf(
            doubled(state),
            unary,
            theirs,
            dilations,
            options.get("steps", 5),
            blur=options.get("blur", 1),
            unary_weight=0.8 if "convcrf" in model else 1.0,
        )
        agree(network(ours), expected)
        assert (expected - unary).abs().max() > 1e-3 * unary.abs().max()  # the CRF does something
    assert told.network == model


def test_a_conv_crf_whose_file_does_not_hold_its_constant_filters(tmp_path, monkeypatch, image):
    """Ones around a zero, 11 x 11."""
    files.narrow(monkeypatch)
    state = files.crf((1,), compat_type="2d", kernel_size=11, blur=4, spatial_filter=False)
    del state["crf.messengers.0.weight"]
    network, told = migrated(tmp_path, state, "pickle", "fcn8s_convcrf")
    ours, theirs = seen(image)
    ones = torch.ones(1, 1, 11, 11, dtype=torch.float64)
    ones[..., 5, 5] = 0
    with torch.no_grad():
        backbone = {name.removeprefix("backbone."): x for name, x in doubled(state).items() if "backbone" in name}
        unary = oracle.fcn8s(backbone, theirs, "fcn8s")
        weights = doubled(state) | {"crf.messengers.0.weight": ones}
        agree(network(ours), oracle.crf(weights, unary, theirs, (1,), 5, blur=4))
    assert [change.here for change in told.changes if change.published is None] == ["crf.messengers.0.weight"]


def test_the_order_of_kernels_counts(tmp_path, monkeypatch, image):
    files.narrow(monkeypatch)
    state = files.crf((64, 16))
    network, _ = migrated(tmp_path, state, "zip", "fcn8s_crfi5p4d5641p4d5161")
    other, _ = migrated(tmp_path, state, "zip", "fcn8s_crfi5p4d5641p4d5161", dilations=[16, 64])
    with torch.no_grad():
        assert not torch.allclose(network(seen(image)[0]), other(seen(image)[0]))


def test_the_recipe_gives_the_network_what_the_published_one_took(tmp_path, monkeypatch, image):
    """Through `protocol: published` of a recipe, in float32."""
    from recipes import reading

    files.narrow(monkeypatch)
    state = files.fcn()
    network, _ = migrated(tmp_path, state, "zip", "fcn8s")
    (recipe,) = reading.read("fcn8s", ["protocol=published"]).values()
    given = building.normalised(recipe, image[0].float())[None]
    with torch.no_grad():
        ours = network.float()(given)
        theirs = oracle.fcn8s(doubled(state), seen(image)[1], "fcn8s")
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
