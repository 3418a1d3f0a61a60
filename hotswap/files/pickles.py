"""Checks of files of torch.save before anything in them is unpacked or unpickled.

PyTorch's `weights_only` unpickler runs no code, but a few bytes can still ask it for more memory than there is. And
the zip reader of PyTorch and that of Python can be made to read different directories in one file, so what one of
them shows to be harmless need not be what the other unpacks.
"""

import pickletools
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

_LARGEST_PICKLE = 8 * 2**20  # bytes beside the numbers of the tensors: enough for thirty thousand of those
_LARGEST_SHARE = 2  # tensors may add up to so many times the file's size: tied weights share bytes
_ROOM = 2**28  # bytes that may be shared however small the file is
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first number in files of torch.save before 1.6
_LEGACY_PICKLES = 5  # of which the fourth has the tensors
_MAKES_BYTES = (b"\nbytearray\n", b"_codecs\nencode\n")
_NUMPY_MAKES = (b"multiarray\nscalar\n", b"multiarray\n_reconstruct\n")
_END, _END_64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_MOST_32 = 2**32 - 1

# What to do with a file that holds more than is read: one line of Python each for its two usual kinds.
TAKE_OUT = (
    "where you trust it, take its weights out: saved = torch.load(FILE, weights_only=False), then "
    "torch.save(saved['state_dict'], 'weights.pth'), or saved.state_dict() where it is a whole network"
)
_TOO_LARGE = (
    f"it holds more than {_LARGEST_PICKLE // 2**20} MiB beside its tensors, which could take any amount of memory; "
    f"{TAKE_OUT}"
)
_BYTES = f"it holds raw bytes beside its tensors, of which any amount could be made; {TAKE_OUT}"
_NUMPY = f"it holds numbers or arrays of NumPy beside its tensors, which are not read; {TAKE_OUT}"


def why_no_archive(file: Path) -> str | None:
    """Why a zip file must not be given to `torch.load`; None if it may be.

    Raises:
        OSError, zipfile.BadZipFile, struct.error: where it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        start = archive.start_dir
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            return "it is a TorchScript archive, which is code; save the state_dict of the network it was made from"
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if not pickles:
            return "it is a zip file that torch.save did not write"
        unpacked = sum(entry.file_size for entry in entries)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > file.stat().st_size:
            return "its parts are compressed or overlap, which torch.save never does; it may be a zip bomb"
        if any(entry.file_size > _LARGEST_PICKLE for entry in pickles):
            return _TOO_LARGE
        for entry in pickles:
            if why := _why_bytes(archive.read(entry)):
                return why
    with file.open("rb") as stream:
        if _directories(stream) != {start}:
            return "its end names another directory than the one before it, which torch.save never does"
    return None


def why_no_pickle(file: Path) -> str | None:
    """Why a pickle must not be given to `torch.load`; None if it may be.

    Raises:
        OSError, ValueError: where it is damaged.
    """
    with file.open("rb") as stream:
        if stream.read(2 + len(_LEGACY))[2:] != _LEGACY:
            return (
                "it is a pickle that torch.save did not write, which could run code; where you trust it, read it as "
                "it was written, and torch.save its tensors as a dictionary of names"
            )
        stream.seek(0)
        for _ in range(_LEGACY_PICKLES):
            for _, _, _ in pickletools.genops(stream):
                if stream.tell() > _LARGEST_PICKLE:
                    return _TOO_LARGE
        length = stream.tell()
        stream.seek(0)
        return _why_bytes(stream.read(length))


def why_too_large(tensors: Iterable[Tensor], file: Path) -> str | None:
    """Why tensors take more memory than their file explains; None if they do not.

    They may share memory, and repeat what is in it: written apart, they would take all they seem to have.
    """
    apart = sum(x.numel() * x.element_size() for x in tensors)
    size = file.stat().st_size
    if apart <= _LARGEST_SHARE * size + _ROOM:
        return None
    return (
        f"its tensors would take {apart / 1e9:.3g} GB apart, and the file has {size / 1e9:.3g} GB; they share "
        "memory, so save clones of them"
    )


def _why_bytes(pickled: bytes) -> str | None:
    """Why a pickle that creates bytes is refused; None if it creates none."""
    if not any(name in pickled for name in _MAKES_BYTES):
        return None
    return _NUMPY if any(name in pickled for name in _NUMPY_MAKES) else _BYTES


def _directories(stream: BinaryIO) -> set[int]:
    """All offsets of the directory that the end records of a zip file name, in either format."""
    stream.seek(-22, 2)
    end = stream.read(22)
    if not end.startswith(_END) or end[-2:] != b"\0\0":  # torch.save writes no comment, in which more could hide
        return set()
    (offset,) = struct.unpack("<I", end[16:20])
    offsets = set() if offset == _MOST_32 else {offset}
    at = stream.tell() - 22 - 20
    if at < 0:
        return offsets
    stream.seek(at)
    locator = stream.read(20)
    if locator.startswith(_LOCATOR):
        stream.seek(struct.unpack("<Q", locator[8:16])[0])
        record = stream.read(56)
        offsets.add(struct.unpack("<Q", record[48:56])[0] if record.startswith(_END_64) else -1)
    return offsets
