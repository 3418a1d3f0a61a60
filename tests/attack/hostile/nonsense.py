"""Files that are nothing of the kind."""

import zlib

from hostile.samples import CHECKPOINT, IMAGE, PLAN, RECIPE, STATE, Sample


def nonsense():
    """Files that are nothing of the kind, under every name."""
    contents = {
        "empty": b"",
        "one byte": b"\x80",
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "a web page": b"<!DOCTYPE html><html>404</html>",
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a program": b"\x7fELF" + bytes(2000),
        "a script": b"#!/bin/sh\ntouch ran\n",
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(2000),
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        + b" " * 60
        + b"\n",
        "gzip": zlib.compress(bytes(10**6), wbits=31),
        "JSON": b'{"a": 1}',
        "long lines": b"a" * 10**6,
    }
    suffixes = {CHECKPOINT: ".safetensors", PLAN: ".json", IMAGE: ".png", STATE: ".pt", RECIPE: ".yaml"}
    return [
        Sample(kind, f"{name} as a {kind}", suffix, content, refused=kind != RECIPE)
        for kind, suffix in suffixes.items()
        for name, content in contents.items()
    ]
