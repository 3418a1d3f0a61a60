"""Networks of transformers: from a folder of a saved model, and out of a checkpoint of ours, which names no code."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from click.testing import CliRunner

import hotswap
from hotswap.checkpoint.load import load_checkpoint, load_weights
from hotswap.checkpoint.read import read
from hotswap.cli import main
from hotswap.errors import HotswapError
from hotswap.zoo import image_stats, images, providers
from hotswap.zoo.transformers import read_preprocessor, recorded
from hotswap.zoo.trust import SizeLimit

TINY = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
    "num_labels": 5,
}
TARGET = "segformer.stages.3.blocks.0.mlp.dwconv.dwconv"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What save_pretrained writes, with all that it and others write into config.json."""
    folder = tmp_path_factory.mktemp("hf") / "segformer"
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**TINY)).eval()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"_name_or_path": "owner/some-name", "id2label": {str(i): f"a/b: {i}, c" for i in range(5)}}
    config |= {"label2id": {v: int(k) for k, v in config["id2label"].items()}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("reaches for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def logits(model):
    return model.eval()(torch.ones(1, 3, 64, 64)).logits


@pytest.mark.parametrize("name", ["hf:{}", "{}"])
def test_a_folder_of_a_saved_model(saved, offline, name):
    folder, model = saved
    spec = name.format(folder)
    built = providers.build(spec, trusted=True)
    assert type(built) is type(model)
    assert built.training
    assert {k: x.shape for k, x in built.state_dict().items()} == {k: x.shape for k, x in model.state_dict().items()}
    assert providers.architecture(spec) == "transformers:SegformerForSemanticSegmentation"
    assert providers.build(f"{spec}?num_labels=3", trusted=True).config.num_labels == 3


def test_commands_end_to_end(saved, offline, tmp_path, monkeypatch):
    folder, model = saved
    monkeypatch.chdir(tmp_path)
    swap = ("--target", TARGET, "--guide", "input", "--method", "hooks", "--input-size", 32)
    assert "names that transformers gives" in run("convert", folder, *swap, "-o", "s.safetensors").stderr
    result = json.loads(run("verify", "s.safetensors", "--input-size", 32, "--json").stdout)
    assert result["output_relative"] < 1e-3
    run("revert", "s.safetensors", "-o", "p.safetensors")
    again = hotswap.load("p.safetensors")  # nothing but the file
    assert isinstance(again, transformers.SegformerForSemanticSegmentation)
    assert again.config.id2label == {i: f"a/b: {i}, c" for i in range(5)}
    assert torch.equal(logits(again), logits(model))
    assert same(again.state_dict(), model.state_dict())


def test_transformers_reads_our_file(saved, tmp_path):
    folder, model = saved
    swapped = hotswap.convert(model, TARGET, "input", guide_scale=0.1)
    hotswap.save(swapped, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    assert same(type(model).from_pretrained(tmp_path).state_dict(), model.state_dict())
    plain = type(model)(model.config)
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)


def test_a_network_whose_own_forward_is_swapped_is_recorded():
    stages = [f"stage{stage}" for stage in range(1, 5)]
    backbone = transformers.ConvNextConfig(depths=[1] * 4, hidden_sizes=[8] * 4, out_features=stages)
    config = transformers.UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False)
    model = transformers.UperNetForSemanticSegmentation(config)
    images = torch.empty(1, 3, 64, 64, device="meta")
    swapped = hotswap.convert(model, "resize", "input", example_inputs=images, check=False)
    assert type(swapped) is not type(model)
    assert recorded(swapped) == recorded(model)


def test_a_network_of_the_users_own_class_is_not_recorded(saved, tmp_path):
    class Own(transformers.SegformerForSemanticSegmentation):
        pass

    own = Own(transformers.SegformerConfig(**TINY))
    assert recorded(torch.nn.Conv2d(1, 1, 1)) is None
    hotswap.save(own, tmp_path / "own.pt", "mynets:make")
    assert read(tmp_path / "own.pt").metadata.config is None
    with pytest.raises(HotswapError, match="the network is none of its classes"):
        hotswap.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "x.pt", str(saved[0]))
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("decode_head.classifier.weight"), "1 missing (decode_head.classifier.weight)"),
        (lambda s: s.update({"decode_head.classifier.bias": torch.ones(7)}), "bias is [7] and must be [5]"),
    ],
)
def test_what_does_not_fit_is_named_by_the_networks_names(saved, change, reason):
    folder, _ = saved
    saved = read(folder / "model.safetensors")
    change(saved.state_dict)
    with pytest.raises(HotswapError) as caught:
        load_weights(providers.build(str(folder), trusted=True), saved)
    assert reason in str(caught.value)


# --- what a configuration may not hold ------------------------------------------------------------------------


def config(**changes):
    return {"model_type": "segformer", **TINY} | changes


@pytest.mark.parametrize(
    "found",
    [
        [],
        {},
        {"model_type": 3},
        config(auto_map={"AutoModel": "owner/name--evil.Net"}),
        config(attn_implementation="kernels-community/evil"),
        config(_attn_implementation="evil"),
        config(quantization_config={"quant_method": "x"}),
        config(trust_remote_code=True),
        config(custom_pipelines={"x": "y"}),
        config(__class__="x"),
        config(checkpoint_path="weights.pth"),
        config(backbone="gpt2"),
        config(backbone="resnet50", use_timm_backbone=True),
        config(backbone_config={"model_type": "timm_backbone", "backbone": "hf-hub:owner/name"}),
        config(backbone_config={"model_type": "timm_backbone", "backbone": "resnet18", "pretrained": True}),
        config(backbone_config={"model_type": "x", "backbone": "resnet18"}),
        config(model_args={"pretrained_cfg": {"file": "x"}}),
        config(model_args={"checkpoint_path": "x"}),
        config(hidden_act="../x"),
        config(hidden_act="https://x"),
        config(hidden_act="x" * 65),
        config(hidden_act=["gelu", "/etc/passwd"]),
        config(depths=[10**5, 1, 1, 1]),
        config(decoder_hidden_size=10**8),
        config(layer_norm_eps=float("nan")),
        config(hidden_sizes=json.loads("[" * 40 + "]" * 40)),
        config(id2label={"0": ["../x"]}),
    ],
)
def test_a_hostile_configuration_is_refused_in_one_line(found):
    with pytest.raises(HotswapError) as caught:
        providers.build("transformers:SegformerModel", trusted=False, config=found)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "found", "reason"),
    [
        ("pipeline", config(), "has no network 'pipeline'"),
        ("SegformerConfig", config(), "has no network"),
        ("PreTrainedModel", config(), "has no network"),
        ("DPTModel", config(), "is no network of model_type 'segformer'"),
        ("SegformerModel", config(model_type="segfromer"), "no model_type 'segfromer'; closest: segformer"),
        ("SegformerModel", config(hidden_sizes="x"), "could not be built"),
        ("SegformerModel", config(hidden_sizes=[8, 16, 24, 6000]), "larger than the file that names it could hold"),
        ("SegformerModel", config(depths=[1, 1, 1, 9000]), "larger than the file that names it could hold"),
        ("SegformerModel", config(hidden_act="nope"), "could not be built"),
    ],
)
def test_a_configuration_of_something_else(offline, name, found, reason):
    with pytest.raises(HotswapError) as caught:
        providers.build(f"transformers:{name}", trusted=False, config=found, limit=SizeLimit(1 << 28, 1000))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_backbone_of_timm_comes_back_without_the_network(offline, tmp_path):
    made = transformers.DetrConfig(
        encoder_layers=1,
        decoder_layers=1,
        d_model=32,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        backbone_config={"model_type": "timm_backbone", "backbone": "resnet10t", "out_indices": [1, 2, 3, 4]},
    )
    model = transformers.DetrModel(made)
    hotswap.save(model, tmp_path / "m.safetensors")
    assert same(hotswap.load(tmp_path / "m.safetensors").state_dict(), model.state_dict())


def test_a_file_of_a_huge_network_is_refused_before_memory_is_taken(saved, tmp_path):
    model = saved[1]
    hotswap.save(model, tmp_path / "m.safetensors")
    saved = read(tmp_path / "m.safetensors")
    saved.metadata.config["decoder_hidden_size"] = 6000
    with pytest.raises(HotswapError, match="larger than the file"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("model_type"), "has no model_type"),
        (lambda c: c.pop("architectures"), "has no architectures"),
        (lambda c: c.update(architectures=["Evil"], auto_map={"AutoModel": "evil.Evil"}), "code of the model's own"),
        (lambda c: c.update(architectures=["Evil"]), "has no network 'Evil'"),
        (lambda c: c.update(hidden_act="/etc/passwd"), "may not hold 'hidden_act'"),
    ],
)
def test_a_folder_that_is_no_saved_model(saved, tmp_path, change, reason):
    found = json.loads((saved[0] / "config.json").read_text())
    change(found)
    (tmp_path / "config.json").write_text(json.dumps(found))
    (tmp_path / "evil.py").write_text("raise SystemExit")
    with pytest.raises(HotswapError) as caught:
        providers.build(str(tmp_path), trusted=True)
    assert reason in str(caught.value)


def prepared(saved, tmp_path, **preprocessor):
    """A saved model with the file that says how its images are prepared."""
    shutil.copytree(saved[0], tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return tmp_path / "model"


HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}


@pytest.mark.parametrize(
    ("preprocessor", "mean", "std", "size"),
    [
        (HALF | {"size": {"height": 32, "width": 64}}, 0.5, 0.25, (32, 64)),
        (HALF | {"size": {"shortest_edge": 96}, "crop_size": 64, "do_center_crop": True}, 0.5, 0.25, (64, 64)),
        (HALF | {"size": {"shortest_edge": 96}, "crop_size": 64, "do_center_crop": False}, 0.5, 0.25, (96, 96)),
        (HALF | {"size": 48, "do_resize": False}, 0.5, 0.25, None),
        (HALF | {"rescale_factor": 1 / 127.5}, 0.25, 0.125, None),
        (HALF | {"do_rescale": False}, 0.5 / 255, 0.25 / 255, None),
        (HALF | {"do_normalize": False, "size": 48}, 0.0, 1.0, (48, 48)),
        ({"size": {"longest_edge": 48}}, None, None, None),
    ],
)
def test_images_are_prepared_as_a_saved_model_says(tmp_path, preprocessor, mean, std, size):
    (tmp_path / "p.json").write_text(json.dumps(preprocessor))
    found = read_preprocessor(tmp_path / "p.json")
    assert found.size == size
    for stated_one, expected in ((found.mean, mean), (found.std, std)):
        assert stated_one == (None if expected is None else pytest.approx((expected,) * len(stated_one)))


def test_what_a_saved_model_says_of_images_stays_with_its_checkpoint(saved, tmp_path):
    folder = prepared(saved, tmp_path, **HALF, size=64)
    out = tmp_path / "s.safetensors"
    example = torch.rand(1, 3, 64, 64)
    hotswap.save(
        hotswap.convert(providers.build(str(folder), trusted=True), TARGET, "input", example_inputs=example), out
    )
    found = images.form_for(hotswap.load(out))
    assert (found.mean, found.std, found.shape) == ((0.5,) * 3, (0.25,) * 3, (3, 64, 64))
    plain = copy.deepcopy(saved[1])
    assert images.form_for(hotswap.load(out, plain)) == found  # the network handed over states nothing
    image_stats.put(plain, image_stats.ImageStats((0.1,), (0.2,)))
    assert images.form_for(hotswap.load(out, plain)).mean[0] == 0.1  # it does, and is the user's word


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"image_mean": 3, "image_std": 3}', '{"image_mean": [1]}', '{"image_mean": [0], "image_std": [NaN]}']
    + ['{"size": 99999}', '{"size": {"height": "8", "width": 8}}', '{"crop_size": true}']
    + [json.dumps(HALF)[:-1] + f', "rescale_factor": {x}}}' for x in ("0", '"x"', "[]", "1" + "0" * 400)],
)
def test_a_preprocessor_that_says_what_cannot_be_is_one_line(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(HotswapError, match=r"p\.json") as caught:
        read_preprocessor(tmp_path / "p.json")
    assert "\n" not in str(caught.value)


def test_what_lies_in_a_folder(tmp_path):
    for spec, reason in ((str(tmp_path), "No such file"), (f"{tmp_path}?pretrained=true", "leave out pretrained")):
        with pytest.raises(HotswapError, match=reason):
            providers.build(spec, trusted=True)
    with pytest.raises(HotswapError, match=r"must hold model\.safetensors or model\.safetensors\.index\.json"):
        providers.weights(str(tmp_path))
    Path(tmp_path / "config.json").write_text("{")
    with pytest.raises(HotswapError, match="must hold a configuration as JSON"):
        providers.build(str(tmp_path), trusted=True)
