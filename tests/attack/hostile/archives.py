"""Zip files that are bombs, contradict themselves, or hold what torch.save never writes."""

import pickle
import struct
import zlib

from hostile.samples import CHECKPOINT, GIB, Sample, state, torch_bytes


def zeros_deflated(size):
    """A deflate stream of so many zeros, of a thousandth of the size, at once."""
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = block.compress(bytes(2**20)) + block.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    return one * (size // 2**20) + last.flush()


def _checksum(content, method):
    return 0 if method else zlib.crc32(content)  # of what is compressed it would take long, and PyTorch does not look


def _local(name, content, method, size):
    fields = (
        0x04034B50,
        20,
        0,
        method,
        0,
        0,
        _checksum(content, method),
        len(content),
        min(size, 2**32 - 1),
        len(name),
        0,
    )
    return struct.pack("<IHHHHHIIIHH", *fields) + name + content


def _central(name, content, method, size, offset):
    sizes = (_checksum(content, method), len(content), min(size, 2**32 - 1), len(name), 0, 0, 0, 0, 0, offset)
    return struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, method, 0, 0, *sizes) + name


def _end(count, size, offset, comment=b""):
    return struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, offset, len(comment)) + comment


def archive(entries, comment=b""):
    """A zip file of (name, content as stored, method, size it claims)."""
    body, directory = b"", b""
    for name, content, method, size in entries:
        directory += _central(name, content, method, size, len(body))
        body += _local(name, content, method, size)
    return body + directory + _end(len(entries), len(directory), len(body), comment)


def two_directories(size):
    """Python's zipfile reads the harmless directory; a reader that goes by its stated offset, the bomb."""
    bomb, harmless = zeros_deflated(size), b"\x80\x02}."
    pkl, version = b"archive/data.pkl", b"archive/version"
    start = _local(pkl, bomb, 8, size) + _local(version, b"3\n", 0, 2)
    body = start + _local(pkl, harmless, 0, len(harmless))
    at = len(start) - len(_local(version, b"3\n", 0, 2))
    hidden = _central(pkl, bomb, 8, size, 0) + _central(version, b"3\n", 0, 2, at)
    # Python takes what lies between the directory and where it is said to be for a prefix of the whole file.
    prefix = len(hidden)
    shown = _central(pkl, harmless, 0, len(harmless), len(start) - prefix) + _central(
        version, b"3\n", 0, 2, at - prefix
    )
    return body + hidden + shown + _end(2, len(shown), len(body))


def archives():
    """Zip files that are bombs, contradict themselves, or hold what torch.save never writes."""
    made = []

    def add(name, content, *, refused=True):
        made.append(Sample(CHECKPOINT, f"zip {name}", ".pt", content, refused))

    size = 3 * GIB
    bomb = zeros_deflated(size)
    good = torch_bytes(state())
    pkl, data = b"archive/data.pkl", b"archive/data/0"
    add("bomb in the pickle", archive([(pkl, bomb, 8, size)]))
    add("bomb in a tensor", archive([(pkl, b"\x80\x02}.", 0, 4), (data, bomb, 8, size)]))
    add("bomb that claims to be small", archive([(pkl, bomb, 8, 100)]))
    add("bomb that claims to be stored", archive([(pkl, bomb, 0, len(bomb))]))
    add("bomb behind a second directory", two_directories(size))
    add("huge stored entry", archive([(pkl, b"\x80\x02}.", 0, 2**32 - 1)]))
    add("of other methods", archive([(pkl, bomb[:100], 12, size), (data, bomb[:100], 14, size)]))
    add(
        "path traversal",
        archive([(b"../../data.pkl", b"\x80\x02}.", 0, 4), (b"/etc/x/data.pkl", b"\x80\x02}.", 0, 4)]),
    )
    add(
        "many entries",
        archive([(f"a/data/{i}".encode(), b"", 0, 0) for i in range(20_000)] + [(pkl, b"\x80\x02}.", 0, 4)]),
    )
    add("two pickles", archive([(pkl, b"\x80\x02}.", 0, 4), (pkl, pickle.dumps({"a": print}, 2), 0, 40)]))
    add("comment", good[:-2] + struct.pack("<H", 5) + b"hello", refused=False)
    add("something before it", b"PK\x03\x04" + bytes(60) + good, refused=False)
    add("something after it", good + bytes(100), refused=False)
    add("overlapping entries", good[: len(good) // 2] + good, refused=False)
    add("no directory", good[: good.rindex(b"PK\x01\x02")])
    add("directory alone", good[good.index(b"PK\x01\x02") :])
    add("name that is no text", archive([(b"\xff\xfe\0/data.pkl", b"\x80\x02}.", 0, 4)]))
    add(
        "marked as encrypted",
        good.replace(b"PK\x01\x02\x00\x00\x00\x00\x00\x00", b"PK\x01\x02\x14\x00\x14\x00\x01\x00"),
        refused=False,
    )
    return made
