"""Checkpoints that are written, and read again."""

import copy
import json
import resource
import signal
import struct

import forks
import networks
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from saving import SMALL, SUFFIXES, one_line, same, swapped
from torch import nn

import hotswap
from hotswap.checkpoint.metadata import Metadata
from hotswap.checkpoint.read import read
from hotswap.checkpoint.write import write
from hotswap.errors import HotswapError
from hotswap.zoo import providers

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
    model = hotswap.convert(Pooled(), "resize_*", "input", guide_scale=3.0, example_inputs=x)
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
        "format_version": 7,
        "hotswap": hotswap.__version__,
        "architecture": "mynets:make?width=8",
        "plan": None,
        "learned_scales": {},
        "config": None,
        "images": {"mean": None, "std": None, "size": None},
        "protocol": None,
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
