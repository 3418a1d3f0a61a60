"""What migrate says, what it refuses, and that the recipes' commands take what it writes."""

import json
import pickle

import published_files as files
import pytest
import torch
from tiny_datasets import nyu
from tiny_recipe import invoke

import hotswap
from hotswap.checkpoint.read import read
from hotswap.errors import HotswapError
from hotswap.zoo import image_stats, providers
from recipes import published
from recipes.networks.fcn8s import FCN8s
from recipes.networks.pac_upsampling import PacUpsampling
from recipes.published import names


def refused(tmp_path, state, **options):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(HotswapError) as caught:
        published.migrate(tmp_path / "w.pth", tmp_path / "ours.safetensors", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours.safetensors").exists()
    return str(caught.value)


# --- what it says ---------------------------------------------------------------------------------------------------


def test_says_what_it_did(tmp_path):
    torch.save(files.upsampling(4, lite=True), tmp_path / "w.pth")
    done = invoke("migrate", tmp_path / "w.pth", "-o", tmp_path / "ours.safetensors")
    assert done.exit_code == 0, done.output
    assert "PacJointUpsampleLite of the published code, told by the names and shapes of its weights" in done.stdout
    assert (
        "up_convts.1.weight   up_convts.1.weight   12x16x5x5   mirrored: the published layer correlates"
        in done.stdout
    )
    assert "18 weights as they were" in done.stdout
    assert f"hotswap evaluate joint_depth_pac_lite_x4 --checkpoint {tmp_path / 'ours.safetensors'}" in done.stdout
    assert done.stderr == f"wrote {tmp_path / 'ours.safetensors'}\n"


def test_json_has_every_weight(tmp_path, monkeypatch):
    files.narrow(monkeypatch)
    state = {f"module.{name}": x for name, x in files.crf((64, 16)).items()}
    del state["module.crf.unary_weight"]
    torch.save({"state_dict": state, "epoch": 30}, tmp_path / "w.pth")
    model = "fcn8spac_crfi5p4d5641p4d5161"
    done = invoke("migrate", tmp_path / "w.pth", "-o", tmp_path / "ours.pt", "--model", model, "--json", "--quiet")
    told = json.loads(done.stdout)
    assert (told["network"], told["protocol"], told["output"]) == (model, "published", str(tmp_path / "ours.pt"))
    assert {f"module.{c['published']}" for c in told["changes"] if c["published"]} == set(state)
    changed = {c["published"] or c["here"]: c["what"] for c in told["changes"] if c["what"] != "as it was"}
    assert {name: what.split(":")[0] for name, what in changed.items()} == {
        "backbone.conv1_1.weight": "its colours turned round",
        "feat_scales.0": "its colours turned round",
        "feat_scales.1": "its colours turned round",
        "backbone.upscore8.weight": "left aside",
        "crf.unary_weight": "not in the file",
    }
    assert any("'module.'" in note for note in told["notes"])
    assert told["swapped"] == ["backbone.conv3_3", "backbone.conv4_3", "backbone.conv5_3"]
    assert "dilations=[64,16]" in told["architecture"]
    written = read(tmp_path / "ours.pt").metadata
    assert written.architecture == told["architecture"]
    assert [swap.target for swap in written.plan.swaps] == told["swapped"]
    assert written.images.protocol == "published"
    torch.testing.assert_close(written.images.mean[0] * 255, 122.679)


@pytest.mark.parametrize(("stem", "model"), names.FILES.items())
def test_files_of_the_published_page_are_known_by_their_names(tmp_path, monkeypatch, stem, model):
    files.narrow(monkeypatch)
    kernels = {"fcn8s_paccrf32_epoch_30": (32,)}.get(stem, (64, 16))
    state = files.crf(kernels) if "crf" in model else files.fcn()
    torch.save(state, tmp_path / f"{stem}.pth")
    told = published.migrate(tmp_path / f"{stem}.pth", tmp_path / "ours.safetensors")
    assert (told.network, told.told_by) == (model, "the file's name and its weights")


def test_other_names_are_told_by_shapes_and_order(tmp_path):
    state = files.upsampling(8, lite=True)
    torch.save(
        {f"net{i}.{name.rpartition('.')[2]}": x for i, (name, x) in enumerate(state.items())}, tmp_path / "w.pth"
    )
    told = published.migrate(tmp_path / "w.pth", tmp_path / "ours.safetensors")
    assert (told.network, told.told_by[:27]) == ("PacJointUpsampleLite", "the shapes and order of its")
    network = hotswap.load(tmp_path / "ours.safetensors", model=PacUpsampling(8, lite=True))
    assert torch.equal(network.branch_f.conv1.weight, state["branch_f.conv1.weight"])
    assert torch.equal(network.up_convts[2].weight, state["up_convts.2.weight"].flip(2, 3))


@pytest.mark.parametrize("scale", [torch.tensor(40.0), torch.tensor([40.0])])
def test_one_scale_for_all_colours_is_taken_too(tmp_path, monkeypatch, scale):
    files.narrow(monkeypatch)
    torch.save(files.crf((32,)) | {"feat_scales.0": scale}, tmp_path / "w.pth")
    network = published.load(tmp_path / "w.pth", model="fcn8s_crfi5p4d5321")
    assert network.feat_scales[0].shape == ()
    assert network.feat_scales[0].item() == 40


def test_a_crf_of_shared_steps_may_have_the_loose_ones_name(tmp_path, monkeypatch):
    files.narrow(monkeypatch)
    torch.save(files.crf((64, 16)), tmp_path / "w.pth")
    told = published.migrate(tmp_path / "w.pth", tmp_path / "o.pt", model="fcn8s_crfi5lp4d5641p4d5161")
    assert "loose" not in told.architecture
    assert told.notes == ("its steps share their weights, as those that the loose CRF of its name starts from do",)


def test_load_gives_the_network(tmp_path):
    torch.save(files.djif(), tmp_path / "w.pth")
    network = published.load(tmp_path / "w.pth")
    assert network(torch.rand(1, 1, 2, 3), torch.rand(1, 3, 8, 12)).shape == (1, 1, 8, 12)
    assert image_stats.of(network).protocol == "published"


# --- what it refuses ------------------------------------------------------------------------------------------------


def test_what_weights_do_not_tell_is_asked_for(tmp_path, monkeypatch):
    files.narrow(monkeypatch)
    message = refused(tmp_path, files.fcn())
    assert "whose weights do not tell how it pads, whether it is hot-swapped; give as model" in message
    assert message.endswith("such as fcn8s, fcn8saltpad, fcn8spac")
    assert refused(tmp_path, files.crf((64, 16))).endswith("fcn8spac_crfi5p4d5641p4d5161")
    assert refused(tmp_path, files.crf((1,), compat_type="2d")).endswith("fcn8spac_convcrf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"extra.weight": torch.ones(1)}, "x8? of the published code and does not fit it: 1 not known (extra.weight)"),
        (lambda s: {n: x for n, x in s.items() if n != "branch_f.conv2.bias"}, "1 missing (branch_f.conv2.bias)"),
        (lambda s: s | {"branch_f.conv2.bias": torch.ones(2)}, "of another shape (branch_f.conv2.bias is [2] and must be [1])"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, change, message):
    told = refused(tmp_path, change(files.upsampling(8, lite=False)))
    assert "looks like PacJointUpsample" in told
    assert message.replace("x8? ", "") in told


def test_what_does_not_fit_a_segmentation_network_is_named(tmp_path, monkeypatch):
    files.narrow(monkeypatch)
    state, model = files.crf((64, 16)), "fcn8s_crfi5p4d5641p4d5161"
    assert "1 not known (crf.more)" in refused(tmp_path, state | {"crf.more": torch.ones(1)}, model=model)
    for missing in ("crf.messengers.1.weight", "crf.pairwise_weights.0"):  # not made up
        told = refused(tmp_path, {name: x for name, x in state.items() if name != missing}, model=model)
        assert f"1 missing ({missing})" in told
    loose = {n: x for n, x in files.crf((64, 16), loose=True).items() if n != "crf.steps.3.unary_weight"}
    assert "1 missing (crf.steps.3.unary_weight)" in refused(tmp_path, loose, model="fcn8s_crfi5lp4d5641p4d5161")
    assert "missing (crf.messengers" in refused(
        tmp_path, {n: x for n, x in state.items() if "messengers" not in n}, model=model
    )
    assert "holds a CRF, and fcn8s has none" in refused(tmp_path, state, model="fcn8s")
    assert "holds no CRF, and" in refused(tmp_path, files.fcn(), model=model)
    assert "has 2 pairwise kernels, so dilations must be a list of as many, got [32]" in refused(
        tmp_path, state, model="fcn8s_crfi5p4d5321"
    )
    told = refused(tmp_path, {n: x for n, x in files.fcn().items() if n != "upscore8.weight"}, model="fcn8s")
    assert "1 missing (upscore8.weight)" in told
    named = {name: x for name, x in files.fcn().items() if "score_fr" not in name}
    assert "has no score_fr.weight" in refused(tmp_path, named, model="fcn8s")


def test_a_hot_swapped_network_may_lack_what_it_does_not_use(tmp_path, monkeypatch):
    files.narrow(monkeypatch)
    torch.save({n: x for n, x in files.fcn().items() if n != "upscore8.weight"}, tmp_path / "w.pth")
    assert published.migrate(tmp_path / "w.pth", tmp_path / "o.pt", model="fcn8spac").swapped


def test_others_files_are_refused(tmp_path):
    told = refused(tmp_path, torch.nn.Linear(3, 4).state_dict())
    assert "none of the published networks that are known; it holds 2 weights, such as weight, bias" in told
    assert refused(tmp_path, files.djif(), model="fcn8s").endswith(
        "holds a DJIF, and model says 'fcn8s'; leave it out"
    )
    assert "has no options that its weights do not tell, got factor" in refused(
        tmp_path, files.djif(), options={"factor": 4}
    )
    published.migrate(tmp_path / "w.pth", tmp_path / "again.safetensors")
    with pytest.raises(HotswapError, match="is a checkpoint of hotswap already"):
        published.migrate(tmp_path / "again.safetensors", tmp_path / "o.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["w.pth", "-o", "ours.safetensors"], "No such file"),
        (["d.pth", "-o", "ours.bin"], "must end in .safetensors or .pt"),
        (["d.pth", "-o", "d.pth"], "is also an input"),
        (["d.pth", "-o", "o.pt", "--set", "blur"], "--set must be key=value"),
        (["f.pth", "-o", "o.pt", "--model", "resnet"], "model must be what the published code's --model takes"),
        (["f.pth", "-o", "o.pt", "--model", "fcn8s", "--set", "hue=1"], "hue"),
        (["f.pth", "-o", "o.pt", "--model", "fcn8s", "--set", "padding=7"], "padding must be 1 or 100"),
        (["f.pth", "-o", "o.pt", "--model", "fcn8s_crfi5x"], "crf"),
        (["f.pth", "-o", "o.pt", "--model", "fcn8s_crfi5p4d"], "must be crfi, the steps"),
        (["f.pth", "-o", "o.pt", "--model", "fcn8s_crfi5p4d5641p2d5161"], "must be of one kind, window and blur"),
        (["c.pth", "-o", "o.pt", "--model", "fcn8s_crfi5p4d5321", "--set", "dilations=3"], "dilations must be a list"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch, arguments, message):
    files.narrow(monkeypatch)
    monkeypatch.chdir(tmp_path)
    torch.save(files.djif(), "d.pth")
    torch.save(files.fcn(), "f.pth")
    torch.save(files.crf((32,)), "c.pth")
    done = invoke("migrate", *arguments)
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_no_code_runs(tmp_path):
    class Runs:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": files.djif(), "extra": Runs()}, tmp_path / "w.pth")
    assert pickle.dumps(Runs())
    done = invoke("migrate", tmp_path / "w.pth", "-o", tmp_path / "o.pt")
    assert (done.exit_code, (tmp_path / "ran").exists()) == (1, False)
    assert "could run code" in done.stderr


# --- the recipes' commands ------------------------------------------------------------------------------------------


def test_evaluate_takes_it_and_says_where_protocols_differ(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.data.nyu.COUNT", 8)
    monkeypatch.setattr("recipes.data.nyu.TRAIN", 5)
    root = nyu(tmp_path, (24, 32), count=8)
    torch.save(files.upsampling(4, lite=True), tmp_path / "w.pth")
    ours = tmp_path / "ours.safetensors"
    published.migrate(tmp_path / "w.pth", ours)
    roots = ["--set", f"data.validation.options.root={root}", "--set", "workers=0"]
    command = ("evaluate", "joint_depth_pac_lite_x4", "--checkpoint", ours, *roots)
    same = invoke(*command)
    assert (same.exit_code, same.stderr) == (0, ""), same.output
    raw = invoke("evaluate", "joint_depth_pac_lite_x4", "--checkpoint", tmp_path / "w.pth", *roots)
    assert raw.stderr == (
        f"note: {str(tmp_path / 'w.pth')!r} was not written by hotswap; if it is of the published code, it fits and gives "
        "wrong results as it is: hotswap migrate brings it here\n"
    )
    assert raw.stdout != same.stdout
    other = invoke(*command, "--set", "protocol=centre_pixel")
    assert other.exit_code == 0
    assert other.stderr == (
        f"note: {str(ours)!r} is of the protocol 'published', and this recipe prepares its data by 'centre_pixel': their "
        "figures must not be compared; --set protocol=published is the checkpoint's\n"
    )
    assert same.stdout != other.stdout


def test_a_recipe_whose_network_has_other_options_is_told(tmp_path, monkeypatch):
    """The same weights fit it, and would give other numbers without a word."""
    from tiny_datasets import LISTS, voc

    files.narrow(monkeypatch)
    root = voc(tmp_path / "voc", LISTS, (40, 36))
    ours = tmp_path / "ours.safetensors"
    torch.save(files.fcn(), tmp_path / "w.pth")
    published.migrate(tmp_path / "w.pth", ours, model="fcn8s")
    sizes = f"model.options={{num_classes: {files.CLASSES}, hidden: {files.HIDDEN}}}"
    command = ["predict", "fcn8s", "--set", "protocol=published", "--set", sizes, "--checkpoint", ours]
    command += ["--set", f"data.validation.options.root={root}", "--output-dir", tmp_path / "out"]
    told = invoke(*command).stderr.splitlines()[0]
    assert told == (
        f"note: {str(ours)!r} is of a network whose option padding is 100, and in this recipe it is 1: the weights fit and "
        "are not meant for it; --set model.options.padding=100 is the checkpoint's"
    )
    assert "note" not in invoke(*command, "--set", "model.options.padding=100").stderr


def test_predict_takes_a_segmentation_network(tmp_path, monkeypatch):
    from PIL import Image
    from tiny_datasets import LISTS, picture, voc

    files.narrow(monkeypatch)
    monkeypatch.chdir(tmp_path)
    root = voc(tmp_path / "voc", LISTS, (40, 36))
    picture(tmp_path / "photos" / "a.png", (33, 40))
    torch.save(files.fcn(), "w.pth")
    told = published.migrate("w.pth", "ours.safetensors", model="fcn8spac")
    at = told.command.index("--set 'model.options=")
    options = told.command[at:].split("'")[1]
    command = ["predict", "fcn8s", "--set", "protocol=published", "--set", options]
    done = invoke(
        *command, "--set", f"data.validation.options.root={root}", "--checkpoint", "ours.safetensors",
        "--images", "photos", "--output-dir", "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    network = hotswap.load("ours.safetensors", model=providers.build(told.architecture, trusted=True)).eval()
    import numpy as np

    image = torch.tensor(np.array(Image.open("photos/a.png").convert("RGB")) / 255.0).permute(2, 0, 1)
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in providers.normalisation(network))
    with torch.no_grad():
        expected = network(((image - mean) / std).float()[None]).argmax(1)[0]
    assert (np.array(Image.open("out/a_prediction.png")) == expected.numpy()).mean() > 0.99


def test_ours_is_found_by_hotswaps_commands(tmp_path, monkeypatch):
    files.narrow(monkeypatch)
    torch.save(files.fcn(), tmp_path / "w.pth")
    published.migrate(tmp_path / "w.pth", tmp_path / "ours.safetensors", model="fcn8spac")
    plain = tmp_path / "plain.safetensors"
    done = invoke("revert", tmp_path / "ours.safetensors", "-o", plain)
    assert done.exit_code == 0, done.output
    assert read(plain).metadata.images.protocol == "published"  # what was told of the data stays
    assert isinstance(hotswap.load(plain, model=FCN8s(files.CLASSES, 1, files.HIDDEN, interpolate=True)), FCN8s)
