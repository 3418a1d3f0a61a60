"""Pickles that run code, or would be gigabytes, and objects that no training script would write."""

import pickle
import struct

import traps

from hostile.samples import CHECKPOINT, GIB, Calls, Sample, state, torch_bytes, torch_zip


def zipped(pickled):
    return (lambda: torch_zip(pickled())) if callable(pickled) else torch_zip(pickled)


def pickles(trap):
    """Pickles that call something, of every protocol, bare and in torch's containers, and by rare opcodes."""
    made = []

    def add(name, content, *, refused=True):
        made.append(Sample(CHECKPOINT, f"pickle {name}", ".pth", content, refused))

    for name, how in traps.gadgets(trap).items():
        trapped = {"state_dict": state(), "extra": Calls(*how)}
        bare = {"extra": Calls(*how)}
        add(f"{name} zip", torch_bytes(trapped))
        add(f"{name} legacy", torch_bytes(trapped, _use_new_zipfile_serialization=False))
        for protocol in range(6):
            add(f"{name} protocol {protocol}", pickle.dumps(bare, protocol))
            add(f"{name} protocol {protocol} in a zip", torch_zip(pickle.dumps(bare, protocol)))
    touch = f"touch {trap}/opcodes".encode()
    rare = {
        "INST": b"(S'" + touch + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + touch + b"'\no.",
        "REDUCE in 0": b"cos\nsystem\n(S'" + touch + b"'\ntR.",
        "posix": b"cposix\nsystem\n(S'" + touch + b"'\ntR.",
        "nt": b"cnt\nsystem\n(S'" + touch + b"'\ntR.",
        "old builtins": b"c__builtin__\neval\n(S'open(\"" + str(trap).encode() + b'/opcodes","w")\'\ntR.',
        "dots": b"ctorch\nserialization.os.system\n(S'" + touch + b"'\ntR.",
        "import": b"ctrap_module\nrun\n.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R.",
        "NEWOBJ of a function": b"\x80\x02cos\nsystem\nU" + bytes([len(touch)]) + touch + b"\x85\x81.",
        "BUILD of a class": b"\x80\x02ccollections\nOrderedDict\n)R}U\x05itemsctorch\nSize\nsb.",
        "PERSID": b"Pstorage\n.",
        "EXT1": b"\x80\x02\x82\x01.",
        "numpy": b"cnumpy\nload\n(S'x.npy'\nNI01\ntR.",
    }
    for name, content in rare.items():
        add(f"by {name}", content)
        add(f"by {name}, in a zip", torch_zip(content))
        if not content.startswith(b"\x80"):
            add(f"by {name}, protocol 2", b"\x80\x02" + content)
    for name, content in bombs().items():
        add(f"bomb {name}", zipped(content))
        add(f"bomb {name}, bare", content)
    for name, content in odd_objects().items():
        add(f"odd {name}", torch_zip(content, _0=bytes(64)), refused=False)
    return made


_COUNT = struct.pack("<i", 2**31 - 1)


def bombs():
    """Pickles of a few bytes, or a few million, that would be gigabytes."""
    length = struct.pack("<i", 2 * GIB - 1)
    return {
        "bytearray": b"\x80\x02}X\x01\0\0\0ac__builtin__\nbytearray\nJ" + length + b"\x85Rs.",
        "bytearray of builtins": b"\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\nJ" + length + b"\x85Rs.",
        "tensor": b"\x80\x02}X\x01\0\0\0actorch\nTensor\nJ" + _COUNT + b"J" + length + b"\x86Rs.",
        "lists": lambda: b"\x80\x02}X\x01\0\0\0a](" + b"]" * 30_000_000 + b"es.",
        "memo": lambda: b"\x80\x02]" + b"".join(b"r" + struct.pack("<I", i) for i in range(10_000_000)) + b".",
        "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "deep tuples": b"\x80\x02)" + b"\x85" * 500_000 + b".",
    }


def odd_objects():
    """Tensors and dictionaries that the safe unpickler makes, and that no training script would write."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0(%s t(%s t\x89ccollections\nOrderedDict\n)RtR"
    tensor = tensor.replace(b" t", b"t")

    def named(value, key=b"X\x0b\0\0\0head.weight"):
        return b"\x80\x02}" + key + value + b"s."

    big = b"J\0\0\0\x7f"
    small = tensor % (b"K\x10", b"K\x01")
    many = b"".join(b"X" + struct.pack("<I", 6) + f"{i:06}".encode() + b"h\x00" for i in range(50_000))
    wide = tensor % (b"J\0\0\x10\0", b"K\0")
    overlaid = b"ccollections\nOrderedDict\n)R(" + b"X\x0b\0\0\0head.weight" + small + b"u}%sb."

    def attribute(name, value=b"K\x01"):
        return b"\x80\x02" + overlaid % (b"X" + struct.pack("<I", len(name)) + name + value + b"s")

    return {
        "a tensor that repeats one number": named(tensor % (big + big, b"K\0K\0")),
        "a tensor out of its memory": named(tensor % (big + big, b"K\x01K\x01")),
        "a tensor of negative size": named(tensor % (b"J\xff\xff\xff\xff", b"K\x01")),
        "a tensor of negative stride": named(tensor % (b"K\x04", b"J\xff\xff\xff\xff")),
        "a tensor of 70 axes": named(tensor % (b"K\x01" * 70, b"K\x01" * 70)),
        "fifty thousand names of one wide tensor": b"\x80\x02}X\x01\0\0\0w" + wide + b"q\0s(" + many + b"u.",
        "items as an attribute": attribute(b"items"),
        "get as an attribute": attribute(b"get", b"ctorch\nSize\n"),
        "keys as an attribute": attribute(b"keys"),
        "_metadata that is none": attribute(b"_metadata", b"}K\x01}s"),
        "_metadata that is a number": attribute(b"_metadata"),
        "detach as an attribute": named(
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n("
            + storage
            + b"K\0(K\x10t(K\x01t\x89ccollections\nOrderedDict\n)Rt}X\x06\0\0\0detachK\x01stR"
        ),
        "a type as a weight": named(b"ctorch\nTensor\n"),
        "an empty parameter": named(b"ctorch.nn.parameter\nParameter\n)\x81"),
        "an empty tensor": named(b"ctorch\nTensor\n)R"),
        "a tensor set to nonsense": named(b"ctorch\nTensor\n)R(K\x01K\x02tb"),
        "a name of 70,000 letters": b"\x80\x02}X" + struct.pack("<I", 70_000) + b"w" * 70_000 + small + b"s.",
        "a name with escapes": named(small, b"X\x0a\0\0\0a\x1b[2J\n\r\0\x07b"),
        "a name that is half a character": named(small, b"X\x03\0\0\0\xed\xa0\x80"),
        "names that are no text": b"\x80\x02}(K\x01" + small + b"N" + small + b")" + small + b"u.",
    }
