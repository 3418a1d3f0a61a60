"""What is refused before it is unpickled, and that what torch.save writes is not."""

import struct
import zipfile

import pytest
import torch
from hostile.archives import two_directories
from hostile.pickles import odd_objects
from hostile.samples import torch_zip

from hotswap.checkpoint.read import read
from hotswap.errors import HotswapError
from hotswap.files import pickles


def refusal(path, content):
    path.write_bytes(content)
    with pytest.raises(HotswapError) as caught:
        read(path)
    return str(caught.value)


BYTEARRAY = b"\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\nJ\0\0\0\x10\x85Rs."
LONG = b"\x80\x02X" + struct.pack("<I", 9 * 2**20) + b"x" * (9 * 2**20) + b"."
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(torch_zip(BYTEARRAY), "raw bytes beside its tensors", id="raw bytes"),
        pytest.param(torch_zip(LONG), "more than 8 MiB beside its tensors", id="a long string"),
        pytest.param(LEGACY + BYTEARRAY + b"\x80\x02].", "raw bytes beside its tensors", id="raw bytes, legacy"),
        pytest.param(LEGACY + LONG, "more than 8 MiB beside its tensors", id="a long string, legacy"),
        pytest.param(BYTEARRAY, "a pickle that torch.save did not write, which could run code", id="raw bytes, bare"),
        pytest.param(two_directories(2**20), "names another directory", id="two directories"),
        pytest.param(
            torch_zip(b"\x80\x02}.")[:-2] + struct.pack("<H", 3) + b"abc",
            "names another directory",
            id="a comment",
        ),
    ],
)
def test_what_could_take_any_amount_of_memory_is_refused(tmp_path, content, reason):
    assert reason in refusal(tmp_path / "w.pt", content)


@pytest.mark.parametrize("odd", ["a tensor that repeats one number", "fifty thousand names of one wide tensor"])
def test_tensors_that_share_memory_may_not_be_much_more_apart(tmp_path, odd):
    content = torch_zip(odd_objects()[odd], _0=bytes(64))
    assert "GB apart" in refusal(tmp_path / "w.pt", content)


@pytest.mark.parametrize("attribute", ["items", "get", "keys", "_metadata"])
def test_attributes_of_a_dictionary_are_not_called(tmp_path, attribute):
    content = torch_zip(odd_objects()[f"{attribute} that is a number" if attribute == "_metadata" else f"{attribute} as an attribute"], _0=bytes(64))  # fmt: skip
    (tmp_path / "w.pt").write_bytes(content)
    assert list(read(tmp_path / "w.pt").state_dict) == ["head.weight"]


def test_the_second_directory_would_have_been_read(tmp_path):
    """Python's reader sees one harmless entry; PyTorch's, without the check, unpacks the bomb."""
    (tmp_path / "w.pt").write_bytes(two_directories(2**26))
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        assert archive.read("archive/data.pkl") == b"\x80\x02}."
    reader = torch._C.PyTorchFileReader(str(tmp_path / "w.pt"))
    assert len(reader.get_record("data.pkl")) == 2**26


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("count", [0, 3, 2000])
def test_what_torch_writes_is_not_refused(tmp_path, zipped, count):
    tied = torch.ones(3)
    content = {"a": tied, "b": tied, "c": tied[:2], **{f"w{i}": torch.ones(1) for i in range(count)}}
    torch.save({"model": content, "epoch": 3, "best": [0.1] * 100}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)  # fmt: skip
    why = pickles.why_no_archive if zipped else pickles.why_no_pickle
    assert why(tmp_path / "w.pt") is None
    assert len(read(tmp_path / "w.pt").state_dict) == count + 3
