"""Safetensors files whose headers lie."""

import json
import struct

from hostile.samples import CHECKPOINT, Sample


def safetensors_file(header, data=b"", length=None):
    """A header, which may be any text, and what follows it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors_files():
    """Headers that lie: lengths, offsets, names, shapes, types, nesting."""
    made = []

    def add(name, content, *, refused=True):
        made.append(Sample(CHECKPOINT, f"safetensors {name}", ".safetensors", content, refused))

    def one(**changes):
        tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
        return safetensors_file({"w": tensor}, bytes(16))

    two = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    add("header longer than the file", safetensors_file(b"{}", length=2**20))
    for length in (0, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1):
        add(f"header of {length} bytes", safetensors_file(b'{"a":1}', length=length))
    add("overlapping tensors", safetensors_file({"a": two, "b": two | {"data_offsets": [8, 24]}}, bytes(24)))
    add("the same bytes twice", safetensors_file({"a": two, "b": two}, bytes(16)))
    add("a hole", safetensors_file({"a": two, "b": two | {"data_offsets": [20, 36]}}, bytes(36)))
    add("bytes after the last", safetensors_file({"a": two}, bytes(99)))
    text = json.dumps(two).encode()
    again = json.dumps(two | {"data_offsets": [16, 32]}).encode()
    add("a key twice", safetensors_file(b'{"a":' + text + b',"a":' + again + b"}", bytes(32)), refused=False)
    meta = b'{"__metadata__":{"hotswap":"{}"},"__metadata__":{"hotswap":"[]"},"a":' + text + b"}"
    add("metadata twice", safetensors_file(meta, bytes(16)))
    add("offsets the wrong way", one(data_offsets=[16, 0]))
    add("negative offsets", one(data_offsets=[-16, 0]))
    add("huge offsets", one(data_offsets=[2**63, 2**64 - 1]))
    add("a huge shape", one(shape=[2**62, 2**62]))
    add("a shape that overflows to its size", one(shape=[2**32, 2**32 + 1, 4]))
    add("a negative shape", one(shape=[-2, -2]))
    add("a shape of fractions", one(shape=[1.5, 2]))
    add("a shape with a zero", one(shape=[0, 2**62], data_offsets=[0, 0]))
    add(
        "an empty tensor of many axes",
        safetensors_file({"w": {"dtype": "F32", "shape": [0] * 70, "data_offsets": [0, 0]}}),
        refused=False,
    )
    add("unknown dtype", one(dtype="F31"))
    for dtype in ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "BOOL", "U64", "C64", "I8"):
        add(f"dtype {dtype}", one(dtype=dtype, shape=[16]), refused=False)
    add("metadata that is no text", safetensors_file({"__metadata__": {"hotswap": {}}, "w": two}, bytes(16)))
    add("metadata that is a list", safetensors_file({"__metadata__": [], "w": two}, bytes(16)))
    add("deep header", safetensors_file(b"{" + b'"a":{' * 100_000))
    add("deep list", safetensors_file(b'{"a":' + b"[" * 1_000_000))
    add("no tensors", safetensors_file({}), refused=False)
    add("header that is no text", safetensors_file(b"{\xff\xfe\x00"))
    add("header with half a character", safetensors_file(b'{"\\ud800":' + text + b"}", bytes(16)))
    add("an empty name", safetensors_file({"": two}, bytes(16)), refused=False)
    add("a name like a path", safetensors_file({"../../etc/passwd": two}, bytes(16)), refused=False)
    add("a name with escapes", safetensors_file({"a\x1b[2J\n\0b": two}, bytes(16)), refused=False)
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    def million():
        return safetensors_file({f"{i}": none for i in range(10**6)})

    def entry_of_many():
        return safetensors_file({"__metadata__": {"hotswap": "[" + "[]," * 2**25 + "[]]"}, "w": two}, bytes(16))

    add("a million empty tensors", million, refused=False)
    add("a huge entry", entry_of_many)
    return made
