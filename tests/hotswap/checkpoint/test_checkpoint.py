import argparse
import bz2
import copy
import gzip
import io
import json
import lzma
import pickle
import random
import resource
import signal
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict

import forks
import networks
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import hotswap
from hotswap.checkpoint.load import load_weights
from hotswap.checkpoint.metadata import FORMAT_VERSION, SCALE_SUFFIX, Metadata
from hotswap.checkpoint.read import Checkpoint, read, read_plan
from hotswap.checkpoint.write import write
from hotswap.errors import HotswapError
from hotswap.zoo import providers

SUFFIXES = [".safetensors", ".pt"]
SMALL = "torchvision:mobilenet_v3_small?num_classes=3"


def swapped(**options):
    return hotswap.convert(networks.Plain(), "target", "guide", **options)


def same(a, b):
    """Bit-identical entries, in the same dtypes."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- round trips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("learn_scale", [False, True])
def test_save_and_load(tmp_path, suffix, dtype, learn_scale):
    model = swapped(learn_scale=learn_scale, guide_scale=0.37).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.123)  # fine-tuned a little, the scale too
    plain = networks.Plain()
    before = copy.deepcopy(plain.state_dict())
    hotswap.save(model, tmp_path / f"m{suffix}")
    loaded = hotswap.load(tmp_path / f"m{suffix}", plain)

    assert same(loaded.state_dict(), model.state_dict())
    assert hotswap.status(loaded) == hotswap.status(model)
    x = torch.randn(2, 3, 16, 16, dtype=dtype)
    assert torch.equal(loaded(x), model(x))
    assert same(hotswap.revert(loaded).state_dict(), hotswap.revert(model).state_dict())
    assert same(plain.state_dict(), before)
    assert hotswap.status(plain).plan is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_network_of_the_zoo_needs_no_model(tmp_path, suffix):
    model = hotswap.convert(providers.build(SMALL, trusted=True))
    hotswap.save(model, tmp_path / f"m{suffix}", architecture=SMALL)
    loaded = hotswap.load(tmp_path / f"m{suffix}")
    assert same(loaded.state_dict(), model.state_dict())
    assert hotswap.status(loaded) == hotswap.status(model)
    assert type(loaded).__mro__[-4:] == type(model).__mro__[-4:]
    assert loaded.training


class Pooled(nn.Module):
    """Nothing in it tells what images it takes, and its code has to be run to find what it enlarges."""

    def forward(self, x):
        y = F.avg_pool2d(x, 2)
        return F.interpolate(y, size=x.shape[2:], mode="bilinear") if x.shape[2] > 2 else y


def test_a_network_with_inputs_of_its_own_loads_on_examples(tmp_path):
    x = torch.rand(1, 5, 8, 10)
    model = hotswap.convert(Pooled(), "resize", "input", guide_scale=3.0, example_inputs=x)
    hotswap.save(model, tmp_path / "m.safetensors")
    with pytest.raises(HotswapError, match="no 2-D convolution"):
        hotswap.load(tmp_path / "m.safetensors", Pooled())
    loaded = hotswap.load(tmp_path / "m.safetensors", Pooled(), example_inputs=x)
    assert torch.equal(loaded(x), model(x))


def test_a_plain_network_can_be_saved_too(tmp_path):
    model = networks.Plain()
    hotswap.save(model, tmp_path / "m.pt")
    assert same(hotswap.load(tmp_path / "m.pt", networks.Plain()).state_dict(), model.state_dict())


@pytest.mark.parametrize("learn_scale", [False, True])
def test_a_loader_that_knows_nothing_of_hotswap_reads_the_original_network(tmp_path, learn_scale):
    model = swapped(learn_scale=learn_scale)
    for suffix in SUFFIXES:
        hotswap.save(model, tmp_path / f"m{suffix}")
    readings = [
        safetensors.torch.load_file(tmp_path / "m.safetensors"),
        torch.load(tmp_path / "m.pt", weights_only=True)["state_dict"],
    ]
    for reading in readings:
        networks.Plain().load_state_dict(reading, strict=True)
        assert same(reading, hotswap.revert(model).state_dict())


def test_what_is_written_beside_the_tensors(tmp_path):
    hotswap.save(swapped(), tmp_path / "m.safetensors", architecture="mynets:make?width=8")
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "pt"
    entry = json.loads(metadata["hotswap"])
    assert entry | {"plan": None} == {
        "format_version": 5,
        "hotswap": hotswap.__version__,
        "architecture": "mynets:make?width=8",
        "plan": None,
        "learned_scales": {},
        "config": None,
        "images": {"mean": None, "std": None, "size": None},
    }
    assert hotswap.Plan.from_dict(entry["plan"]) == hotswap.status(swapped()).plan


@pytest.mark.parametrize("first", [0x80, ord("<"), ord("P"), ord("v")])
def test_a_safetensors_header_may_be_of_any_length(tmp_path, first):
    """The file starts with it, and a first byte of 0x80 is how a pickle starts."""
    hotswap.save(swapped(), tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    padding = (first - length) % 256
    (tmp_path / "m.safetensors").write_bytes(
        struct.pack("<Q", length + padding) + data[8 : 8 + length] + b" " * padding + data[8 + length :]
    )
    assert read(tmp_path / "m.safetensors").metadata is not None


def test_views_and_shared_memory_are_written_apart(tmp_path):
    base = torch.arange(24.0)
    tensors = {"a": base[:6], "b": base[3:9].view(2, 3), "c": base.view(4, 6).T, "d": base, "e": base, "f": base[:0]}
    for suffix in SUFFIXES:
        write(tensors, tmp_path / f"m{suffix}", Metadata())
        assert same(read(tmp_path / f"m{suffix}").state_dict, tensors)


def test_tied_weights_and_one_convolution_under_two_names(tmp_path):
    model = hotswap.convert(networks.TiedBranches(), "left.c", "guide", learn_scale=True, guide_scale=0.5)
    hotswap.save(model, tmp_path / "m.safetensors")
    loaded = hotswap.load(tmp_path / "m.safetensors", networks.TiedBranches())
    assert loaded.left.c is loaded.right.c
    assert same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))],
    ids=["dp", "compile", "both"],
)
def test_wrappers_are_taken_off(tmp_path, wrap):
    model = swapped()
    hotswap.save(wrap(model), tmp_path / "m.pt")
    assert same(hotswap.load(tmp_path / "m.pt", networks.Plain()).state_dict(), model.state_dict())


def test_writing_the_same_twice_gives_the_same_bytes(tmp_path):
    model = swapped()
    for name in ("a.pt", "b.pt"):
        hotswap.save(model, tmp_path / name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def broken(name, value):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer(name, value)

    return Odd()


@pytest.mark.parametrize(
    ("model", "path", "architecture", "reason"),
    [
        (networks.Plain(), "m.onnx", None, "must end in .safetensors or .pt (or .pth), got"),
        (networks.Plain(), "m", None, "must end in .safetensors or .pt"),
        (networks.Plain(), "nowhere/m.pt", None, "there is no folder"),
        (networks.Plain(), "file/m.pt", None, "is not a folder"),
        (networks.Plain(), "m.pt", "vgg16", "must be torchvision:NAME"),
        (networks.Plain(), "m.pt", "transformers:A?x=1", "a file may not ask for"),
        (networks.Plain(), "m.pt", "timm:x?checkpoint_path=y", "a file may not ask for"),
        (nn.LazyConv2d(1, 1), "m.pt", None, "'weight' of the state_dict is a UninitializedParameter"),
        (broken("x", torch.ones(2, device="meta")), "m.pt", None, "'x' of the state_dict is without values"),
        (broken("x", torch.ones(2, 2).to_sparse()), "m.pt", None, "'x' of the state_dict is sparse"),
        (broken("x", torch.ones(2).cdouble()), "m.safetensors", None, "cannot hold torch.complex128; write a .pt"),
    ],
)
def test_a_refused_save_writes_nothing(tmp_path, model, path, architecture, reason):
    (tmp_path / "file").touch()
    with pytest.raises(HotswapError) as caught:
        hotswap.save(model, tmp_path / path, architecture)
    assert reason in one_line(caught)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def write_to_a_full_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    for suffix in (".pt", ".safetensors"):
        try:
            write({"a": torch.ones(100_000)}, f"m{suffix}", Metadata())
        except ValueError as error:
            print(type(error).__name__, str(error), flush=True)


def test_a_full_disk_is_one_line_and_leaves_the_old_files(tmp_path):
    (disk := tmp_path / "disk").mkdir()
    for suffix in (".pt", ".safetensors"):
        (disk / f"m{suffix}").write_text("old")
    status, out, errors = forks.run(write_to_a_full_disk, folder=disk)
    assert status == 0, errors
    lines = out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("HotswapError cannot write ") and "File too large" in line for line in lines)
    assert sorted((p.name, p.read_text()) for p in disk.iterdir()) == [("m.pt", "old"), ("m.safetensors", "old")]


# --- what training scripts leave ------------------------------------------------------------------------------


def plain_state():
    torch.manual_seed(3)
    return networks.Plain().state_dict()


def prefixed(prefix, state=None):
    return OrderedDict((prefix + name, x) for name, x in (state or plain_state()).items())


NESTINGS = {
    "bare": (plain_state(), []),
    "state_dict": ({"state_dict": plain_state(), "epoch": 3}, ["'state_dict'"]),
    "model": ({"model": plain_state(), "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, ["'model'"]),
    "deep": ({"checkpoint": {"model_state_dict": plain_state()}}, None),
    "one_other": ({"generator": plain_state(), "epoch": 3, "lr": [0.1]}, ["'generator'"]),
    "module.": ({"state_dict": prefixed("module.")}, ["'state_dict'", "prefix 'module.'"]),
    "compiled ddp": (prefixed("_orig_mod.module."), ["prefix '_orig_mod.'", "prefix 'module.'"]),
    "lightning": ({"state_dict": prefixed("model."), "pytorch-lightning_version": "2"}, ["prefix 'model.'"]),
    "ema beside": ({"model": plain_state(), "model_ema": prefixed("module.")}, ["'model_ema', which were not taken"]),
    "ema alone": (
        {"model_ema": prefixed("module.") | {"n_averaged": torch.tensor(3)}},
        ["'model_ema'", "n_averaged"],
    ),
    "extras": (plain_state() | {"epoch": 3, "name": "x"}, ["left aside 2 entries", "'epoch', 'name'"]),
}


@pytest.mark.parametrize("case", list(NESTINGS))
@pytest.mark.parametrize("legacy", [False, True])
def test_nestings_and_prefixes_are_unwrapped_and_said(tmp_path, case, legacy):
    content, notes = NESTINGS[case]
    if case == "deep":
        content, notes = {"model": content["checkpoint"]}, ["'model'", "'model_state_dict'"]
    torch.save(content, tmp_path / "w.bin", _use_new_zipfile_serialization=not legacy)
    found = read(tmp_path / "w.bin")
    model = networks.Plain()
    told = " | ".join((*found.notes, *load_weights(model, found)))
    assert same(model.state_dict(), plain_state())
    assert all(note in told for note in notes), told
    assert bool(told) == bool(notes)


def test_a_prefix_that_is_the_networks_own_stays():
    wrapped = nn.DataParallel(networks.Plain())
    assert load_weights(wrapped, Checkpoint("x", dict(prefixed("module.")), None)) == ()


def test_module_versions_survive(tmp_path):
    """torch's own modules load weights of older versions by the version beside them; MNASNet insists on one."""
    from torchvision.models import mnasnet0_5

    model = mnasnet0_5(num_classes=2)
    wrapped = nn.DataParallel(model).state_dict()
    torch.save({"state_dict": wrapped}, tmp_path / "w.pth")
    hotswap.save(model, tmp_path / "ours.safetensors")
    for name in ("w.pth", "ours.safetensors"):
        again = mnasnet0_5(num_classes=2)
        load_weights(again, read(tmp_path / name))
        assert same(again.state_dict(), model.state_dict())


def test_batch_norms_from_before_they_counted_load(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    old = {name: x + 1 for name, x in model.state_dict().items() if "num_batches" not in name}
    safetensors.torch.save_file(old, tmp_path / "w.safetensors")
    load_weights(model, read(tmp_path / "w.safetensors"))
    assert torch.equal(model[1].weight, torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.ones(2), "must hold a state_dict, got a Tensor"),
        ([plain_state()], "must hold a state_dict, got a list"),
        ({}, "got only nothing"),
        ({"epoch": 3, "lr": 0.1}, "got only 'epoch', 'lr'"),
        ({"g": plain_state(), "d": plain_state()}, "several sets of weights ('g', 'd')"),
        ({"a": torch.ones(2, 2).to_sparse()}, "weight 'a' is sparse"),
        ({"a": torch.ones(2, device="meta")}, "weight 'a' is without values"),
        ({"hotswap": 3, "state_dict": plain_state()}, "must be text, got a int"),
    ],
)
def test_refuses_what_holds_no_weights(tmp_path, content, reason):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(HotswapError) as caught:
        read(tmp_path / "w.pth")
    assert reason in one_line(caught)


def test_a_dictionary_that_contains_itself_ends(tmp_path):
    content = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(HotswapError, match="must hold a state_dict"):
        read(tmp_path / "w.pth")


# --- the wrong network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("head.bias"), "1 missing (head.bias); is this the right architecture?"),
        (lambda s: s.update(extra=torch.ones(1)), "1 not the network's (extra)"),
        (lambda s: s.update({"head.bias": torch.ones(5)}), "1 of another shape (head.bias is [5] and must be [2])"),
        (lambda s: s.update({"head.bias": torch.ones(2, dtype=torch.int8)}), "head.bias is torch.int8 and must be"),
        (
            lambda s: [s.pop(name) for name in list(s)[:5]],
            "5 missing (stem.weight, stem.bias, guide.weight and 2 more)",
        ),
        (lambda s: s.update({f"x{i}.{'y' * 500}": torch.ones(1) for i in range(50)}), "and 47 more"),
    ],
)
@pytest.mark.parametrize("learn_scale", [None, True])
def test_weights_that_do_not_fit_change_nothing(change, reason, learn_scale):
    model = swapped(learn_scale=True) if learn_scale else networks.Plain()
    before = copy.deepcopy(model.state_dict())
    state = dict(plain_state())
    change(state)
    metadata = Metadata(learned_scales={"target.guide_log_scale": torch.tensor(1.0)}) if learn_scale else None
    with pytest.raises(HotswapError) as caught:
        load_weights(model, Checkpoint("w.pth", state, metadata))
    assert reason in one_line(caught)
    assert len(str(caught.value)) < 1000
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("save", "model", "reason"),
    [
        (lambda p: hotswap.save(swapped(), p), None, "does not say which network"),
        (lambda p: torch.save(plain_state(), p), None, "does not say which network"),
        (lambda p: hotswap.save(swapped(), p, "networks:Plain"), None, "a file may not choose what code runs"),
        (lambda p: hotswap.save(swapped(), p), networks.Containers(), "target 'target' is no module"),
        (lambda p: hotswap.save(swapped(), p), networks.Plain(c_out=4), "made for another network"),
        (lambda p: hotswap.save(swapped(), p), swapped(), "converted already"),
        (lambda p: torch.save(plain_state(), p), networks.Containers(), "is this the right architecture?"),
    ],
)
def test_load_refuses(tmp_path, save, model, reason):
    save(tmp_path / "m.pt")
    before = None if model is None else copy.deepcopy(model.state_dict())
    with pytest.raises(HotswapError) as caught:
        hotswap.load(tmp_path / "m.pt", model)
    assert reason in one_line(caught)
    assert model is None or same(model.state_dict(), before)


def test_the_file_of_a_factory_loads_into_the_callers_network(tmp_path):
    hotswap.save(swapped(), tmp_path / "m.pt", "networks:Plain")
    assert hotswap.status(hotswap.load(tmp_path / "m.pt", networks.Plain())).plan is not None


# --- damaged and hostile files --------------------------------------------------------------------------------


class Runs:
    """A pickle of it creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "protocol 2"])
def test_a_pickle_that_would_run_code_does_not(tmp_path, how):
    content = {"state_dict": plain_state(), "extra": Runs(tmp_path / "ran")}
    file = tmp_path / "w.pth"
    if how.startswith("p"):
        file.write_bytes(pickle.dumps({"extra": Runs(tmp_path / "ran")}, 2 if how == "protocol 2" else 4))
        pickle.loads(file.read_bytes())
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
        torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()  # so the trap works
    (tmp_path / "ran").unlink()
    with pytest.raises(HotswapError) as caught:
        read(file)
    assert "code" in one_line(caught)
    assert not (tmp_path / "ran").exists()


def test_what_a_pickle_needs_is_named(tmp_path):
    file = tmp_path / "w.pth"
    for more, what in [
        ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"optimiser": torch.optim.SGD}, "torch.optim.sgd.SGD"),
        ({"dtype": float}, "(float)"),
        ({"best": np.float64(0.5)}, "numbers or arrays of NumPy"),
        ({"seen": np.arange(3)}, "numbers or arrays of NumPy"),
    ]:
        torch.save({"state_dict": plain_state(), **more}, file)
        with pytest.raises(HotswapError) as caught:
            read(file)
        assert what in one_line(caught)
        # What it says to do, done.
        assert "saved = torch.load(FILE, weights_only=False), then torch.save(saved['state_dict']" in str(
            caught.value
        )
        torch.save(torch.load(file, weights_only=False)["state_dict"], file)
        assert read(file).state_dict.keys() == plain_state().keys()
    torch.save(networks.Plain(), file)
    with pytest.raises(HotswapError, match=r"\(networks\.Plain\).*saved\.state_dict\(\) where it is a whole network"):
        read(file)


def torchscript(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # files of it will be around for long
        torch.jit.script(nn.Conv2d(1, 1, 1)).save(path)


def tarred(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())


def zipped(path, compression, **entries):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("_", "/").replace("0", "."), content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.mkdir(), "it is a folder"),
        (lambda p: None, "No such file"),
        (lambda p: p.write_text("<!DOCTYPE html><html>404</html>"), "web page"),
        (lambda p: p.write_text("\n <?xml version='1.0'?>"), "web page"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"), "git lfs pull"),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5 file, as Keras writes"),
        (lambda p: p.write_bytes(gzip.compress(b"weights")), "`gunzip FILE`"),
        (lambda p: p.write_bytes(bz2.compress(b"weights")), "`bunzip2 FILE`"),
        (lambda p: p.write_bytes(lzma.compress(b"weights")), "`unxz FILE`"),
        (tarred, "`tar -xf FILE`"),
        (lambda p: p.write_bytes(bytes(1000)), "neither a safetensors file nor"),
        (lambda p: p.write_bytes(b"PK\x03\x04"), "damaged"),
        (lambda p: p.write_bytes(struct.pack("<Q", 2**60) + b"{" + bytes(9)), "damaged"),
        (torchscript, "TorchScript"),
        (lambda p: zipped(p, 0, readme="x"), "zip file that torch.save did not write"),
        (lambda p: zipped(p, 8, a_data0pkl="x", a_data_0=bytes(10**6)), "zip bomb"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, make, reason, suffix):
    path = tmp_path / f"w{suffix}"
    make(path)
    with pytest.raises(HotswapError) as caught:
        read(path)
    assert reason in one_line(caught)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".legacy"])
def test_truncated_at_any_length(tmp_path, suffix):
    whole, cut = tmp_path / f"m{suffix}", tmp_path / f"cut{suffix}"
    if suffix == ".legacy":
        torch.save(plain_state(), whole, _use_new_zipfile_serialization=False)
    else:
        hotswap.save(swapped(), whole)
    data = whole.read_bytes()
    for length in sorted({*range(0, 200, 7), *range(200, len(data), len(data) // 60), len(data) - 1}):
        cut.write_bytes(data[:length])
        with pytest.raises(HotswapError) as caught:
            read(cut)
        one_line(caught)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".legacy"])
def test_flipped_bits_are_read_or_refused(tmp_path, suffix):
    """In the first bytes (headers), the last (a zip file's directory) and anywhere."""
    file = tmp_path / f"m{suffix}"
    if suffix == ".legacy":
        torch.save(plain_state(), file, _use_new_zipfile_serialization=False)
    else:
        hotswap.save(swapped(), file)
    data = file.read_bytes()
    chance = random.Random(0)  # noqa: S311 (nothing secret)
    refused = []
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 3))):
            where = chance.choice((range(1500), range(len(data) - 1500, len(data)), range(len(data))))
            damaged[chance.choice(where)] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            read(file)
        except HotswapError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in message for message in refused)


IMAGES = {"mean": None, "std": None, "size": None}


def entry(**changes):
    """An entry of the format that is written, with changes."""
    content = {"hotswap": "0.1.0", "architecture": None, "plan": None, "learned_scales": {}}
    content |= {"format_version": FORMAT_VERSION, "config": None, "images": IMAGES}
    return json.dumps(content | changes)


def without(*keys, **changes):
    content = json.loads(entry(**changes))
    return json.dumps({key: value for key, value in content.items() if key not in keys})


PLAN = hotswap.plan(networks.Plain(), "target", "guide").to_dict()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "is malformed"),
        ("7", "is malformed"),
        ("{}", "is malformed"),
        (entry(format_version=6), "newer hotswap (format 6, and this one reads up to 5); pip install --upgrade"),
        (entry(format_version=4), "is malformed"),
        (without("images"), "is malformed"),
        (without("config"), "is malformed"),
        (without("images", "config", format_version=4), "is malformed"),
        (without("images", format_version=3), "is malformed"),
        (entry(config=[]), "config must not be a list"),
        (entry(images=None), "images must not be a NoneType"),
        (entry(images={}), "images must say mean, std and size, got nothing"),
        (entry(images={"x": 1}), "images must say mean, std and size, got 'x'"),
        (entry(images=IMAGES | {"mean": [0.5]}), "images must be stated both or neither"),
        (entry(images=IMAGES | {"mean": [0.5], "std": [1, 1, 1]}), "must be as many, got 1 and 3"),
        (entry(images=IMAGES | {"mean": [], "std": []}), "the mean of images must be a number from"),
        (entry(images=IMAGES | {"mean": ["x"], "std": [1]}), "the mean of images must be a number from"),
        (entry(images=IMAGES | {"mean": [0], "std": [0]}), "the std of images must be a number from 1e-06"),
        (entry(images=IMAGES | {"mean": [0], "std": [1]}).replace("[1]", "[NaN]"), "the std of images must be"),
        (entry(images=IMAGES | {"mean": [0], "std": [1]}).replace("[1]", "[1e400]"), "the std of images must be"),
        (entry(images=IMAGES | {"size": 8}), "the size of images must be a list of numbers, got a int"),
        (entry(images=IMAGES | {"size": [8]}), "must be a height and a width of 1 to 2048 pixels, got [8]"),
        (entry(images=IMAGES | {"size": [8, 5000]}), "must be a height and a width of 1 to 2048 pixels"),
        (entry(images=IMAGES | {"size": [True, 8]}), "must be a height and a width of 1 to 2048 pixels"),
        (entry(format_version=0), "is malformed"),
        (entry(format_version="1"), "is malformed"),
        (entry(more=1), "is malformed"),
        (entry(architecture=3), "architecture must not be a int"),
        (entry(architecture="os"), "must be torchvision:NAME"),
        (entry(plan=[]), "plan must not be a list"),
        (entry(plan={}), "the plan must have 'swaps'"),
        (entry(plan=PLAN | {"swaps": []}), "at least one swap"),
        (
            entry(plan={"swaps": [PLAN["swaps"][0] | {"guide_scale": -1}], "notes": []}),
            "guide_scale must be a number",
        ),
        (entry(plan={"swaps": [PLAN["swaps"][0] | {"guide_scale": "x" * 9999}], "notes": []}), "guide_scale must be"),
        (entry(plan=PLAN).replace("0.0001", "1" + "0" * 400), "a number of 401 digits"),
        (entry(plan=PLAN).replace("0.0001", "NaN"), "guide_scale must be a number"),
        (entry(learned_scales={"target.weight": [1.0, "float32"]}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": ["1", "float32"]}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": [1.0, "int8"]}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": [1.0, []]}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": 1.0}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": [2.0, "float32"]}).replace("2.0", "Infinity"), "learned_scales"),
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hostile_metadata_is_one_short_line(tmp_path, text, reason, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": plain_state(), "hotswap": text}, path)
    else:
        safetensors.torch.save_file(dict(plain_state()), path, {"hotswap": text})
    with pytest.raises(HotswapError) as caught:
        read(path)
    assert reason in one_line(caught)
    assert str(path) in str(caught.value) or "network" in str(caught.value)
    assert len(str(caught.value)) < 800


def test_an_architecture_in_a_file_runs_nothing(tmp_path):
    torch.save(
        {"state_dict": plain_state(), "hotswap": entry(architecture=f'os:system?command="touch {tmp_path}/ran"')},
        tmp_path / "w.pt",
    )
    with pytest.raises(HotswapError, match="a file may not choose what code runs"):
        hotswap.load(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_read_plan(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    assert read_plan(path) == hotswap.Plan.from_dict(PLAN)
    for content, reason in ((b"\xff\xfe", "is no text"), (b"{", "must be JSON"), (b"[]", "must be a mapping")):
        path.write_bytes(content)
        with pytest.raises(HotswapError, match=reason):
            read_plan(path)


def test_the_names_of_learned_scales_are_the_librarys():
    names = swapped(learn_scale=True).state_dict().keys() - networks.Plain().state_dict().keys()
    assert names == {f"target{SCALE_SUFFIX}"}
