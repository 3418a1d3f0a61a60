"""Weights in several safetensors files, and weights whose names are not quite the network's."""

import json
from pathlib import Path

import networks
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import nn

import hotswap
from hotswap.checkpoint.load import load_weights
from hotswap.checkpoint.read import Checkpoint, read
from hotswap.cli import main
from hotswap.errors import HotswapError
from hotswap.files import shards


def swapped():
    torch.manual_seed(3)
    return hotswap.convert(networks.Plain(), "target", "guide", guide_scale=0.4, learn_scale=True)


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- in parts ---------------------------------------------------------------------------------------------------


def test_written_in_parts_and_read_again(tmp_path):
    model = swapped()
    hotswap.save(model, tmp_path / "m.safetensors", max_shard_size=1000)
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert names(tmp_path) == sorted([*files, "m.safetensors.index.json"])
    assert len(files) > 2
    assert files[0].endswith(f"-00001-of-{len(files):05}.safetensors")
    plain = hotswap.revert(model).state_dict()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in plain.values())
    for name in ("m.safetensors", "m.safetensors.index.json"):
        loaded = hotswap.load(tmp_path / name, networks.Plain())
        assert same(loaded.state_dict(), model.state_dict())
        assert hotswap.status(loaded) == hotswap.status(model)
    found = {}  # as a loader does that knows nothing of hotswap
    for file in files:
        found |= safetensors.torch.load_file(tmp_path / file)
    networks.Plain().load_state_dict(found, strict=True)
    assert same(found, plain)
    for file in files:
        size = sum(x.nbytes for x in safetensors.torch.load_file(tmp_path / file).values())
        assert size <= 1000 or len(safetensors.torch.load_file(tmp_path / file)) == 1


def test_commands_write_and_read_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hotswap.save(swapped(), "s.safetensors")
    result = CliRunner().invoke(main, ["revert", "s.safetensors", "--max-shard-size", "1KB", "-o", "p.safetensors"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p.safetensors.index.json").exists()
    assert same(read("p.safetensors").state_dict, hotswap.revert(swapped()).state_dict())
    result = CliRunner().invoke(main, ["revert", "s.safetensors", "--max-shard-size", "x", "-o", "q.safetensors"])
    assert (result.exit_code, "max_shard_size must be" in result.stderr) == (1, True)


def test_what_fits_is_one_file(tmp_path):
    hotswap.save(swapped(), tmp_path / "m.safetensors", max_shard_size="5GB")
    assert names(tmp_path) == ["m.safetensors"]


def test_written_again_nothing_old_stays(tmp_path):
    for seed in range(2):
        torch.manual_seed(seed)
        model = networks.Plain()
        hotswap.save(model, tmp_path / "m.safetensors", max_shard_size=1000)
        (tmp_path / "m-other-00001-of-00009.safetensors").write_text("somebody else's")
        assert same(hotswap.load(tmp_path / "m.safetensors", networks.Plain()).state_dict(), model.state_dict())
    index = json.loads((tmp_path / "m.safetensors.index.json").read_text())
    expected = {*index["weight_map"].values(), "m.safetensors.index.json", "m-other-00001-of-00009.safetensors"}
    assert set(names(tmp_path)) == expected


def test_a_write_that_fails_leaves_the_old_parts(tmp_path, monkeypatch):
    model = networks.Plain()
    hotswap.save(model, tmp_path / "m.safetensors", max_shard_size=1000)
    before = names(tmp_path)
    count, save_file = 0, safetensors.torch.save_file

    def fails(*args):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        save_file(*args)

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(KeyboardInterrupt):
        hotswap.save(networks.Plain(), tmp_path / "m.safetensors", max_shard_size=1000)
    assert names(tmp_path) == before
    assert same(hotswap.load(tmp_path / "m.safetensors", networks.Plain()).state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("size", "path", "reason"),
    [
        (0, "m.safetensors", "must be a number of bytes or text such as 5GB, got 0"),
        (True, "m.safetensors", "got True"),
        ("5 apples", "m.safetensors", "got '5 apples'"),
        ("-1GB", "m.safetensors", "got '-1GB'"),
        ("1IB", "m.safetensors", "got '1IB'"),
        (1000, "m.pt", "only a .safetensors file can be written in parts"),
        (1000, "there.safetensors", "is there already, in one file"),
    ],
)
def test_refuses_parts_that_cannot_be(tmp_path, size, path, reason):
    (tmp_path / "there.safetensors").touch()
    with pytest.raises(HotswapError) as caught:
        hotswap.save(networks.Plain(), tmp_path / path, max_shard_size=size)
    assert reason in str(caught.value)
    assert names(tmp_path) == ["there.safetensors"]


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("2 KiB", 2048), (7, 7), ("300mb", 3 * 10**8)])
def test_sizes(text, size):
    assert shards.parse_size(text) == size


def index(**weight_map):
    return json.dumps({"metadata": {}, "weight_map": {k.replace("_", "."): v for k, v in weight_map.items()}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("{", "must hold an index"),
        ("[" * 10**5, "must hold an index"),
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        (index(a=3), "must name safetensors files that lie beside it, and names '3'"),
        (index(a="../m.safetensors"), "names '../m.safetensors'"),
        (index(a="/etc/m.safetensors"), "that lie beside it"),
        (index(a="x/../m.safetensors"), "that lie beside it"),
        (index(a="..\\m.safetensors"), "that lie beside it"),
        (index(a=".m.safetensors"), "that lie beside it"),
        (index(a="m.safetensors\n"), "that lie beside it"),
        (index(a="m.pt"), "that lie beside it"),
        (index(a="x" * 10**6), "that lie beside it"),
        (
            index(a="one.safetensors", b="gone.safetensors"),
            "needs 'gone.safetensors' beside it, and 1 of its 2 files",
        ),
        (index(a="one.safetensors", zz="one.safetensors"), "'one.safetensors' must hold 'zz', as"),
        (index(a="cut.safetensors"), "damaged or cut short"),
        (json.dumps({"metadata": {"hotswap": "{"}, "weight_map": {"a": "one.safetensors"}}), "must be JSON"),
    ],
)
def test_an_index_that_is_none(tmp_path, text, reason):
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (tmp_path / "m.safetensors", folder / "one.safetensors"):
        safetensors.torch.save_file({"a": torch.ones(1)}, place)
    (folder / "cut.safetensors").write_bytes((folder / "one.safetensors").read_bytes()[:-1])
    (folder / "m.safetensors.index.json").write_text(text)
    with pytest.raises(HotswapError) as caught:
        read(folder / "m.safetensors")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_link_to_a_part_is_followed(tmp_path):
    """As in the hub's cache."""
    (tmp_path / "blobs").mkdir()
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "blobs" / "one")
    Path(tmp_path / "one.safetensors").symlink_to("blobs/one")
    (tmp_path / "m.safetensors.index.json").write_text(index(a="one.safetensors"))
    assert read(tmp_path / "m.safetensors.index.json").state_dict.keys() == {"a"}


# --- names ------------------------------------------------------------------------------------------------------


def plain():
    torch.manual_seed(3)
    return networks.Plain().state_dict()


def under(prefix, state=None):
    return {prefix + name: x for name, x in (state or plain()).items()}


ZEROS = {name: torch.zeros_like(x) for name, x in plain().items()}
FOUND = {
    "lightning with a loss": (
        under("model.") | {"criterion.weight": torch.ones(3)},
        ["took the weights under 'model.'", "left aside 1 entries that are not under it: criterion.weight"],
    ),
    "fabric": (under("_forward_module."), ["'_forward_module.'"]),
    "an attribute of one's own": (
        under("segmenter.net.") | {"loss.weight": torch.ones(1)},
        ["under 'segmenter.net.'", "loss.weight"],
    ),
    "ema beside": (
        under("online_model.") | under("ema_model.", ZEROS) | {"step": torch.ones(1)},
        ["under 'online_model.'", "averaged weights, under 'ema_model.', which were not taken", "aside 1"],
    ),
    "ema alone": (under("ema_model.module.") | {"initted": torch.ones(1)}, ["under 'ema_model.module.'", "initted"]),
    "averaged model": (under("module.") | {"n_averaged": torch.ones(1)}, ["under 'module.'", "n_averaged"]),
    "compiled part": (
        {name.replace("stem.", "stem._orig_mod."): x for name, x in plain().items()},
        ["took '_orig_mod.' out of 2 names"],
    ),
    "fsdp with activation checkpoints": (
        under(
            "_fsdp_wrapped_module.",
            {f"{n.replace('.', '._checkpoint_wrapped_module.')}": x for n, x in plain().items()},
        ),
        ["'_fsdp_wrapped_module.' off all names", "took '_checkpoint_wrapped_module.' out of"],
    ),
}


@pytest.mark.parametrize("case", list(FOUND))
@pytest.mark.parametrize("mapped", [False, True])
def test_a_network_is_found_under_what_wrappers_put_before_it(case, mapped):
    state, told = FOUND[case]
    model = networks.Plain()
    notes = " | ".join(load_weights(model, Checkpoint("w.pth", state, None), mapped=mapped))
    assert same(model.state_dict(), plain())
    assert all(text in notes for text in told), notes


def test_what_is_no_weight_of_the_network_is_left_aside_and_told():
    state, one = plain(), torch.ones(1)
    counted = {"total_ops": one, "module.total_ops": one, "module.target.total_params": one}
    heads = {"module.aux_classifier.0.weight": one, "module.head.auxlayer.bias": one}
    network = networks.Plain()
    notes = load_weights(network, Checkpoint(Path("w.pth"), {**under("module."), **counted, **heads}, None))
    assert same(network.state_dict(), state)
    assert "left aside 3 counts of operations: total_ops, module.total_ops, module.target.total_params" in notes
    assert "left aside an auxiliary head, 2 weights: aux_classifier.0.weight, head.auxlayer.bias" in notes
    with pytest.raises(HotswapError, match="1 not the network's"):  # which may be anything
        load_weights(network, Checkpoint(Path("w.pth"), {**state, "extra.weight": one}, None))


def test_a_network_that_was_counted_takes_a_file_that_was_not():
    network = networks.Plain()
    network.target.register_buffer("total_ops", torch.full((1,), 7.0))
    load_weights(network, Checkpoint(Path("w.pth"), plain(), None))
    assert network.target.total_ops.item() == 7
    assert torch.equal(network.target.weight, plain()["target.weight"])


def test_an_auxiliary_head_of_the_network_must_be_in_the_file():
    network = networks.Plain()
    network.aux_head = nn.Linear(1, 1)
    with pytest.raises(HotswapError, match="2 missing \\(aux_head.weight, aux_head.bias\\)"):
        load_weights(network, Checkpoint(Path("w.pth"), plain(), None))


def test_two_networks_in_one_file_are_not_guessed_at():
    state = under("a.") | under("b.")
    with pytest.raises(HotswapError, match=r"'w.pth': it holds the network's weights 2 times, under 'a\.', 'b\.'"):
        load_weights(networks.Plain(), Checkpoint("w.pth", state, None))


def test_part_of_a_network_is_not_enough():
    state = under("model.") | {"criterion.weight": torch.ones(3)}
    state.pop("model.head.bias")
    with pytest.raises(HotswapError, match="do not fit"):
        load_weights(networks.Plain(), Checkpoint("w.pth", state, None))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kept", ["a", "b"])
def test_tied_weights_that_stand_once_in_the_file(mapped, kept):
    """transformers' save_pretrained and safetensors' save_model write one of their names."""
    state = {name: x.half() if x.is_floating_point() else x for name, x in Tied().state_dict().items()}
    del state["b.weight" if kept == "a" else "a.weight"]
    model = Tied()
    weight = model.a.weight
    (note,) = load_weights(model, Checkpoint("w", state, None), mapped=mapped)
    assert "1 names are tied to others" in note
    assert model.a.weight is model.b.weight is weight
    assert torch.equal(weight, state[f"{kept}.weight"])
    assert weight.dtype == torch.float16


def test_mapped_weights_are_the_files_own_memory(tmp_path):
    safetensors.torch.save_file(plain(), tmp_path / "w.safetensors")
    model, found = networks.Plain(), read(tmp_path / "w.safetensors")
    before = dict(model.named_parameters())
    load_weights(model, found, mapped=True)
    assert all(found.state_dict[name].data_ptr() == x.data_ptr() for name, x in model.named_parameters())
    assert all(before[name] is x and x.requires_grad for name, x in model.named_parameters())
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        model.head.bias.add_(1)  # the mapping is private
    assert same(read(tmp_path / "w.safetensors").state_dict, plain())


def test_a_recurrent_layers_own_list_of_weights_follows(tmp_path):
    old, model = nn.GRU(2, 3), nn.GRU(2, 3)
    load_weights(model, Checkpoint("w", old.state_dict(), None), mapped=True)
    x = torch.ones(4, 1, 2)
    assert torch.equal(model(x)[0], old(x)[0])
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["float32", "float16", "parts", "pt"])
def test_converting_takes_the_memory_of_the_weights_once(tmp_path, how):
    from benchmarks.memory import measured

    assert measured(tmp_path, how, megabytes=1000).times <= 1.3
