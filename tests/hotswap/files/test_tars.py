"""Tar archives of the first versions of torch.save: read as PyTorch reads them, and without running code."""

import io
import os
import pickle
import tarfile
from collections import OrderedDict

import pytest
import torch
import torch_tars

from hotswap.checkpoint.read import read
from hotswap.errors import HotswapError

STATE = OrderedDict(
    [
        ("a.weight", torch.arange(24.0).view(2, 3, 4)),
        ("a.bias", torch.tensor([1.5], dtype=torch.float64)),
        ("count", torch.tensor(7)),
        ("none", torch.zeros(0)),
    ]
)


@pytest.mark.parametrize(
    "content", [STATE, {"state_dict": STATE, "epoch": 3, "name": "x", "best": [0.5, None, True]}]
)
def test_are_read_as_pytorch_reads_them(tmp_path, content):
    file = tmp_path / "w.pth"
    torch_tars.save(content, file)
    theirs = torch.load(file, weights_only=False)
    theirs = theirs.get("state_dict", theirs)
    ours = read(file)
    assert list(ours.state_dict) == list(theirs) == list(STATE)
    for name, x in STATE.items():
        assert torch.equal(theirs[name], x)
        assert torch.equal(ours.state_dict[name], x)
        assert ours.state_dict[name].dtype == x.dtype


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_runs(tmp_path):
    file, ran = tmp_path / "w.pth", tmp_path / "ran"
    torch_tars.save({"weight": torch.ones(2), "extra": Runs(str(ran))}, file)
    torch.load(file, weights_only=False)
    ran.rmdir()  # so the trap works
    with pytest.raises(HotswapError, match="more than tensors, which could run code"):
        read(file)
    assert not ran.exists()


def test_damage_is_told_in_one_line(tmp_path):
    file = tmp_path / "w.pth"
    torch_tars.save(STATE, file)
    whole = file.read_bytes()
    for length in range(600, len(whole.rstrip(b"\0")), 501):
        file.write_bytes(whole[:length])
        with pytest.raises(HotswapError) as caught:
            read(file)
        assert "\n" not in str(caught.value)
    refused = []
    for at in range(512, len(whole), 97):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        file.write_bytes(damaged)
        try:
            read(file)
        except HotswapError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize("numel", [-1, 2**40])
def test_a_storage_that_claims_more_than_it_has_is_refused(tmp_path, numel):
    file = tmp_path / "w.pth"
    torch_tars.save({"w": torch.ones(3)}, file)
    before = (3).to_bytes(8, "little") + torch.ones(3).numpy().tobytes()
    damaged = file.read_bytes().replace(before, numel.to_bytes(8, "little", signed=True) + before[8:])
    file.write_bytes(damaged)
    with pytest.raises(HotswapError, match="cut short"):
        read(file)


def test_other_archives_are_not_taken_for_it(tmp_path):
    file = tmp_path / "w.tar"
    with tarfile.open(file, "w") as archive:
        content = pickle.dumps(1)
        entry = tarfile.TarInfo("pickle")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(HotswapError, match="a tar archive; unpack it first"):
        read(file)
