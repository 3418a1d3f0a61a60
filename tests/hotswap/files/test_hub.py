"""Networks to and from the hub, over HTTP, against a stand-in of it."""

import json
import logging
import re

import networks
import pytest
import safetensors.torch
import timm
import torch
import transformers
from click.testing import CliRunner
from hub_stand_in import TOKEN, Hub

import hotswap
from hotswap.checkpoint.read import read
from hotswap.cli import main
from hotswap.errors import HotswapError
from hotswap.zoo import images, providers

NET = "networks:Plain"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    import huggingface_hub.constants
    import huggingface_hub.utils._http

    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    yield server
    server.close()


def swapped(**options):
    torch.manual_seed(3)
    return hotswap.convert(networks.Plain(), "target", "guide", guide_scale=0.4, **options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def files(stand_in, repository="owner/name"):
    return stand_in.repositories[repository][-1][1]


@pytest.mark.parametrize("size", ["5GB", 1000])
def test_pushed_and_loaded_again(stand_in, size, caplog):
    model = swapped(learn_scale=True)
    address = hotswap.push_to_hub(model, "owner/name", architecture=NET, max_shard_size=size)
    sha = stand_in.repositories["owner/name"][-1][0]
    assert address == f"hf-hub:owner/name@{sha}"
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files(stand_in))
    with caplog.at_level(logging.INFO, "hotswap"):
        for name in ("hf-hub:owner/name", "hf-hub:owner/name@main", address):
            loaded = hotswap.load(name, networks.Plain())
            assert same(loaded.state_dict(), model.state_dict())
            assert hotswap.status(loaded) == hotswap.status(model)
    assert f"hf-hub:owner/name is at commit {sha}" in caplog.text


def test_what_was_there_before_goes_and_a_readme_stays(stand_in):
    stand_in.put("owner/name", README__md=b"mine", model__safetensors=b"old", other__txt=b"x")
    for _ in range(2):
        hotswap.push_to_hub(swapped(), "owner/name", max_shard_size=1000)
    found = files(stand_in)
    assert (found["README.md"], found["other.txt"]) == (b"mine", b"x")
    index = json.loads(found["model.safetensors.index.json"])
    assert {*index["weight_map"].values(), "model.safetensors.index.json", "README.md", "other.txt"} == found.keys()
    hotswap.push_to_hub(swapped(), "owner/name")
    assert files(stand_in).keys() == {"model.safetensors", "README.md", "other.txt"}


def test_the_card_says_what_is_swapped_and_how_to_load_it(stand_in):
    hotswap.push_to_hub(swapped(), "owner/name")
    card = files(stand_in)["README.md"].decode()
    assert "target" in card
    assert 'hotswap.load("hf-hub:owner/name", model=the_plain_network)' in card


def test_a_branch_is_made_and_main_stays_as_it_was(stand_in):
    first = hotswap.push_to_hub(networks.Plain(), "owner/name")
    for _ in range(2):  # made, then there already
        address = hotswap.push_to_hub(swapped(), "owner/name", branch="trial")
    assert same(hotswap.load("hf-hub:owner/name@trial", networks.Plain()).state_dict(), swapped().state_dict())
    assert address.endswith(stand_in.repositories["owner/name@trial"][-1][0])
    assert first.endswith(stand_in.repositories["owner/name"][-1][0])
    assert files(stand_in, "owner/name@trial")["README.md"] == files(stand_in)["README.md"]  # which was there


@pytest.mark.parametrize("extra", [(), ("--private", "--branch", "trial", "--message", "a try")])
def test_the_command_pushes_and_says_where(stand_in, monkeypatch, extra):
    monkeypatch.syspath_prepend(str(networks.__file__).rpartition("/")[0])
    hotswap.save(swapped(), "s.safetensors")
    command = ("push", "s.safetensors", "owner/name", "--model", NET, *extra)
    address = run(*command).stdout.strip()
    assert same(hotswap.load(address, networks.Plain()).state_dict(), swapped().state_dict())
    assert json.loads(run(*command, "--json").stdout)["address"].startswith("hf-hub:owner/name@")
    quiet = run(*command, "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    (sent,) = [body for path, body in stand_in.bodies if path == "/api/repos/create"][:1]
    assert (b"private" in sent) == bool(extra)
    assert {"trial"} == {name.partition("@")[2] for name in stand_in.repositories if "@" in name} or not extra
    commits = [
        json.loads(body.splitlines()[0])["value"]["summary"] for path, body in stand_in.bodies if "/commit/" in path
    ]
    assert len(commits) == 3
    assert (commits[0] == "a try") == bool(extra)


def test_a_push_that_is_refused_is_one_line_also_when_quiet(stand_in, monkeypatch):
    monkeypatch.syspath_prepend(str(networks.__file__).rpartition("/")[0])
    hotswap.save(swapped(), "s.safetensors")
    for wrong, reason in (
        (("s.safetensors", "name", "--model", NET), "must be hf-hub:OWNER/NAME"),
        (("s.safetensors", "owner/name@main", "--model", NET), "must be OWNER/NAME"),
        (("s.safetensors", "owner/name", "--model", NET, "--branch", "no name"), "must be hf-hub:OWNER/NAME"),
        (("s.safetensors", "owner/name"), "--model"),
        (("gone.safetensors", "owner/name", "--model", NET), "cannot read 'gone.safetensors'"),
    ):
        result = run("push", *wrong, "--quiet", code=1)
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert stand_in.requests == []


def test_a_pinned_revision_is_the_old_one(stand_in):
    first = swapped()
    address = hotswap.push_to_hub(first, "owner/name")
    with torch.no_grad():
        second = swapped()
        second.head.bias.add_(1)
    hotswap.push_to_hub(second, "owner/name")
    assert same(hotswap.load(address, networks.Plain()).state_dict(), first.state_dict())
    assert same(hotswap.load("hf-hub:owner/name", networks.Plain()).state_dict(), second.state_dict())
    stand_in.close()  # a commit that is in the cache needs no hub
    assert same(hotswap.load(address, networks.Plain()).state_dict(), first.state_dict())


def test_commands_take_addresses(stand_in, monkeypatch):
    monkeypatch.syspath_prepend(str(networks.__file__).rpartition("/")[0])
    hotswap.push_to_hub(swapped(), "owner/name")
    sha = stand_in.repositories["owner/name"][-1][0]
    result = run("verify", "hf-hub:owner/name", "--model", NET, "--input-size", 16, "--json")
    assert f"note: hf-hub:owner/name is at commit {sha}" in result.stderr
    assert json.loads(result.stdout)["output_relative"] > 0
    run("revert", "hf-hub:owner/name", "-o", "plain.safetensors")
    assert same(read("plain.safetensors").state_dict, hotswap.revert(swapped()).state_dict())
    run("diff", "hf-hub:owner/name", f"hf-hub:owner/name@{sha}")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf-hub:owner", "must be hf-hub:OWNER/NAME"),
        ("hf-hub:owner/name/more", "must be hf-hub:OWNER/NAME"),
        ("hf-hub:../name", "must be hf-hub:OWNER/NAME"),
        ("hf-hub:owner/name@", "must be hf-hub:OWNER/NAME"),
        ("hf-hub:owner/gone", "there is no hf-hub:owner/gone on the hub, or it is private"),
        ("hf-hub:owner/name@gone", "owner/name has no revision 'gone'"),
        (
            "hf-hub:owner/name",
            "must hold model.safetensors or model.safetensors.index.json, and does not; only safet",
        ),
        ("hf-hub:owner/gated", "is gated: ask for access"),
        ("hf-hub:owner/out", "that lie beside it"),
        ("hf-hub:owner/short", "must hold gone.safetensors"),
    ],
)
def test_what_is_not_there_is_one_line(stand_in, address, reason):
    stand_in.put("owner/name", pytorch_model__bin=b"a pickle")
    stand_in.put("owner/gated", model__safetensors=b"x")
    stand_in.gated.add("owner/gated")
    for repository, shard in (("owner/out", "../../x.safetensors"), ("owner/short", "gone.safetensors")):
        index = {"weight_map": {"a": shard}}
        stand_in.put(repository, model__safetensors__index__json=json.dumps(index).encode())
    with pytest.raises(HotswapError) as caught:
        hotswap.load(address, networks.Plain())
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any("bin" in path for _, path in stand_in.requests)


def test_without_a_network_it_is_one_line(stand_in):
    stand_in.close()
    for attempt in (
        lambda: hotswap.load("hf-hub:owner/name", networks.Plain()),
        lambda: hotswap.push_to_hub(swapped(), "owner/name"),
    ):
        with pytest.raises(HotswapError, match=r"hf-hub:owner/name .*(cannot be reached)") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_token_that_may_not_write(stand_in, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HotswapError, match=r"HF_TOKEN"):
        hotswap.push_to_hub(swapped(), "owner/name")
    assert stand_in.repositories == {}


@pytest.mark.parametrize(
    ("model", "repository", "reason"),
    [
        (networks.Plain(), "name", "must be hf-hub:OWNER/NAME"),
        (torch.nn.LazyConv2d(1, 1), "owner/name", "UninitializedParameter"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(stand_in, model, repository, reason):
    with pytest.raises(HotswapError, match=reason):
        hotswap.push_to_hub(model, repository)
    assert stand_in.requests == []


# --- saved models of others -------------------------------------------------------------------------------------


def test_a_model_of_timms(stand_in):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    trained = {"input_size": [1, 64, 96], "mean": [0.25], "std": [0.125]}
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": trained}
    sha = stand_in.put(
        "owner/name",
        config__json=json.dumps(config).encode(),
        model__safetensors=safetensors.torch.save(model.state_dict()),
    )
    result = run("convert", "timm:hf-hub:owner/name", "-o", "s.safetensors")
    assert f"note: hf-hub:owner/name is at commit {sha}" in result.stderr
    found = read("s.safetensors")
    assert found.metadata.architecture == "timm:test_resnet?num_classes=3&in_chans=1"
    loaded = hotswap.load("s.safetensors")
    assert same(loaded.state_dict(), model.state_dict())
    for network in (loaded, providers.build("timm:hf-hub:owner/name", trusted=True)):
        form = images.form_for(network)
        assert (form.shape, form.mean, form.std) == ((1, 64, 96), (0.25,), (0.125,))
    assert providers.pinned(f"timm:hf-hub:owner/name@{sha}") == (f"timm:hf-hub:owner/name@{sha}", ())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (b"{", "must hold JSON"),
        (b"[]", "must hold a JSON object"),
        (b"{}", "names no architecture"),
        (b'{"architecture": "../x"}', "a file may not ask"),
        (b'{"architecture": "test_resnet", "model_args": {"checkpoint_path": "x"}}', "a file may not ask"),
        (b'{"architecture": "test_resnet", "model_args": {"a": {"b": 1}}}', "an option 'a' that a network's name"),
        (b'{"architecture": "test_resnet", "input_size": {}, "mean": [1]}', "stated both or neither"),
        (b'{"architecture": "test_resnet", "input_size": 3}', "input_size must be a list"),
        (b'{"architecture": "test_resnet", "input_size": [3, 8, 1e9]}', "must be a height and a width"),
    ],
)
def test_a_configuration_of_timms_that_is_none(stand_in, config, reason):
    stand_in.put("owner/name", config__json=config)
    with pytest.raises(HotswapError, match=re.escape(reason)):
        providers.build("timm:hf-hub:owner/name", trusted=True)


def test_a_model_of_transformers(stand_in):
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1] * 4}
    torch.manual_seed(0)
    model = transformers.SegformerModel(transformers.SegformerConfig(**sizes))
    first = hotswap.push_to_hub(model, "owner/name")
    spec, notes = providers.pinned("hf:owner/name")
    assert spec == first.replace("hf-hub:", "hf:")
    assert len(notes) == 1
    assert type(providers.build(spec, trusted=True)) is transformers.SegformerModel
    assert providers.weights(spec) == first
    assert same(hotswap.load(first).state_dict(), model.state_dict())
    assert json.loads(files(stand_in)["config.json"])["architectures"] == ["SegformerModel"]
    prepared = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 64, "width": 64}}
    stand_in.put("owner/name", preprocessor_config__json=json.dumps(prepared).encode())
    later = providers.pinned("hf:owner/name")[0]
    for name, mean in ((spec, providers.IMAGENET_MEAN), (later, (0.5,) * 3)):
        assert providers.normalisation(providers.build(name, trusted=True))[0] == mean
    stand_in.close()  # that there is no such file is in the cache too
    for name, mean in ((spec, providers.IMAGENET_MEAN), (later, (0.5,) * 3)):
        assert providers.normalisation(providers.build(name, trusted=True))[0] == mean
