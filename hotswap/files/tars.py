"""Reads the tar archives that the first versions of torch.save wrote, without running code.

PyTorch reads them with `weights_only=False` alone. An archive has three parts: `storages` and `tensors`, numbers with
small pickles between them, and `pickle`, what was saved, in which a tensor is its number. The pickles are taken apart
with `pickletools`, which only reads: names of classes stay names, and all that is called is `OrderedDict`.
"""

import pickletools
import struct
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

_PARTS = ("storages", "tensors", "pickle")
_MOST_STEPS = 2**20  # of a pickle; a network of a thousand weights takes ten thousand
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
}


class Global(NamedTuple):
    """The name of a class or function in a pickle."""

    module: str
    name: str


def is_torch_tar(file: Path) -> bool:
    """Whether a file is a tar archive of torch.save."""
    try:
        with tarfile.open(file, "r:") as archive:
            return set(_PARTS) <= set(archive.getnames())
    except (tarfile.TarError, OSError):
        return False


def load(file: Path) -> Any:
    """What such a file holds.

    Raises:
        Exception: of any kind, where it is damaged, or holds more than tensors, numbers and text.
    """
    with tarfile.open(file, "r:") as archive:
        storages = _storages(_part(archive, "storages"))
        tensors = _tensors(_part(archive, "tensors"), storages)
        return _unpickled(_part(archive, "pickle"), lambda key: tensors[int(key)])


def _part(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    member = archive.getmember(name)
    stream = archive.extractfile(member)
    if stream is None or member.issparse():  # a sparse one could be larger than the archive
        raise ValueError(f"{name!r} is no plain file in it")
    return stream


def _storages(stream: IO[bytes]) -> dict[int, Tensor]:
    """The numbers of all storages, one-dimensional, by their keys."""
    storages: dict[int, Tensor] = {}
    for _ in range(_unpickled(stream)):
        key, _, kind = _unpickled(stream)
        dtype = _DTYPES[kind.name.removesuffix("Storage")]
        (count,) = struct.unpack("<q", stream.read(8))
        size = count * dtype.itemsize
        content = stream.read(size) if count >= 0 else b""
        if count < 0 or len(content) != size:
            raise ValueError("it is cut short")
        storages[key] = torch.frombuffer(bytearray(content), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    for key, root, offset, count in _unpickled(stream):
        storages[key] = storages[root][offset : offset + count]
    return storages


def _tensors(stream: IO[bytes], storages: dict[int, Tensor]) -> dict[int, Tensor]:
    tensors: dict[int, Tensor] = {}
    for _ in range(_unpickled(stream)):
        key, storage, _ = _unpickled(stream)
        (dimensions, _) = struct.unpack("<ii", stream.read(8))
        if not 0 <= dimensions <= 64:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        size = struct.unpack(f"<{dimensions}q", stream.read(8 * dimensions))
        stride = struct.unpack(f"<{dimensions}q", stream.read(8 * dimensions))
        (offset,) = struct.unpack("<q", stream.read(8))
        tensors[key] = torch.as_strided(storages[storage], size, stride, offset)
    return tensors


def _no_tensor(key: Any) -> Any:
    raise ValueError("a tensor where there can be none")


def _unpickled(stream: IO[bytes], tensor_of: Callable[[Any], Any] = _no_tensor) -> Any:
    """The next pickle of a stream.

    Raises:
        ValueError: where it holds more than tensors, numbers and text in dictionaries, lists and tuples.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        first = marks.pop()
        items = stack[first:]
        del stack[first:]
        return items

    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        value: Any = argument
        if step > _MOST_STEPS:
            raise ValueError("it holds more than a network's weights")
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode.name]())
            case "DICT":
                items = above_mark()
                stack.append(dict(zip(items[::2], items[1::2], strict=True)))
            case "LIST":
                stack.append(above_mark())
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode.name == "APPEND" else above_mark()
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if opcode.name == "SETITEM" else above_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(Global(*value.split(" ", 1)))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                if called != Global("collections", "OrderedDict"):
                    raise ValueError(f"it holds more than tensors, numbers and text: {called}")
                stack.append(OrderedDict(*arguments))
            case "BUILD":
                stack.pop()  # attributes: those of an OrderedDict are of no use here
            case "PERSID" | "BINPERSID":
                stack.append(tensor_of(value if opcode.name == "PERSID" else stack.pop()))
            case _ if opcode.arg is not None:  # a number or text
                stack.append(value)
            case _:
                raise ValueError(f"it holds more than tensors, numbers and text: {opcode.name}")
    raise ValueError("it is cut short")
