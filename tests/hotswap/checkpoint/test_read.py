"""What training scripts leave, files that are no checkpoints, and damaged ones."""

import argparse
import bz2
import gzip
import io
import lzma
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict

import networks
import numpy as np
import pytest
import safetensors.torch
import torch
from saving import SUFFIXES, one_line, plain_state, same, swapped
from torch import nn

import hotswap
from hotswap.checkpoint.load import load_weights
from hotswap.checkpoint.read import Checkpoint, read
from hotswap.errors import HotswapError


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
