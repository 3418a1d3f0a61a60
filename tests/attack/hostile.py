"""Hostile and damaged files, each by a name: what a person who wishes ill, or a bad cable, would hand in."""

import functools
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import networks
import numpy as np
import torch
import traps
import yaml
from PIL import Image
from safetensors.torch import save as safetensors_bytes

import hotswap

CHECKPOINT, PLAN, RECIPE, IMAGE, STATE = "checkpoint", "plan", "recipe", "image", "state"
GIB = 2**30


@dataclass(frozen=True)
class Sample:
    """A file to be: what it pretends to be, what it is called, how its name ends, and its bytes."""

    kind: str
    name: str
    suffix: str
    content: bytes | Callable[[], bytes]  # a function where they are too many to keep
    refused: bool = True  # whether it must be; else it may be read as well

    @property
    def big(self):
        """Whether it has many bytes, and so takes time."""
        return callable(self.content)

    def bytes(self):
        """What the file holds."""
        return self.content() if callable(self.content) else self.content


@functools.cache
def state():
    """The weights of the network that everything here is about."""
    torch.manual_seed(3)
    return networks.Plain().state_dict()


@functools.cache
def plan():
    """The plan of its swap, as a file holds it."""
    return hotswap.plan(networks.Plain(), "target", "guide", guide_scale=0.3).to_dict()


def entry(**changes):
    """What hotswap writes beside the tensors, with changes."""
    made = {"format_version": 3, "hotswap": "0.1.0", "architecture": None, "plan": plan(), "learned_scales": {}}
    return json.dumps(made | changes)


def all_samples(trap):
    """Every hostile file; where one runs code, the code springs the trap."""
    samples = [
        *pickles(trap),
        *archives(),
        *safetensors_files(),
        *weights(),
        *metadata(trap),
        *plans(),
        *recipes(trap),
    ]
    return [*samples, *images(), *states(trap), *nonsense()]


# --- pickles that run code ----------------------------------------------------------------------------------


class _Calls:
    def __init__(self, function, arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


def torch_zip(data_pkl, **records):
    """What torch.save writes, with another pickle in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/byteorder", "little")
        for name, content in records.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", content)
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def torch_bytes(content, **options):
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _zipped(pickled):
    return (lambda: torch_zip(pickled())) if callable(pickled) else torch_zip(pickled)


def pickles(trap):
    """Pickles that call something, of every protocol, bare and in torch's containers, and by rare opcodes."""
    made = []

    def add(name, content, *, refused=True):
        made.append(Sample(CHECKPOINT, f"pickle {name}", ".pth", content, refused))

    for name, how in traps.gadgets(trap).items():
        trapped = {"state_dict": state(), "extra": _Calls(*how)}
        bare = {"extra": _Calls(*how)}
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
        add(f"bomb {name}", _zipped(content))
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


# --- zip files ------------------------------------------------------------------------------------------------


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


# --- safetensors ----------------------------------------------------------------------------------------------


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


# --- weights that are none of the network's ------------------------------------------------------------------


def weights():
    """Files as they should be, with numbers, shapes or types that they should not have."""
    made = []

    def add(name, tensors, *, refused=True, **about):
        suffixes = {".pt": torch_bytes({"state_dict": tensors, "hotswap": entry(**about)})}
        if all(x.is_contiguous() and not x.is_complex() for x in tensors.values()):
            suffixes[".safetensors"] = safetensors_bytes(dict(tensors), {"hotswap": entry(**about)})
        for suffix, content in suffixes.items():
            made.append(Sample(CHECKPOINT, f"weights {name} {suffix}", suffix, content, refused))

    def changed(**changes):
        return OrderedDict({k: changes.get(k.replace(".", "_"), lambda x: x)(x) for k, x in state().items()})

    for value in (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45):
        add(f"of {value}", changed(guide_weight=lambda x, v=value: torch.full_like(x, v)), refused=False)
        add(f"all of {value}", OrderedDict((k, torch.full_like(x, value)) for k, x in state().items()), refused=False)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        add(f"of {dtype}", OrderedDict((k, x.to(dtype)) for k, x in state().items()), refused=False)
        add(f"one of {dtype}", changed(target_weight=lambda x, d=dtype: x.to(d)), refused=False)
    for dtype in (torch.int8, torch.bool, torch.int64, torch.complex64):
        add(f"one of {dtype}", changed(target_weight=lambda x, d=dtype: x.to(d)), refused=False)
    add("transposed", changed(target_weight=lambda x: x.transpose(0, 1).contiguous()), refused=False)
    add("of another shape", changed(target_weight=lambda x: x[:, :4].contiguous()), refused=False)
    add("scalar", changed(target_weight=lambda x: torch.ones(())), refused=False)
    add("empty", changed(target_weight=lambda x: torch.ones(0)), refused=False)
    add("one too many", OrderedDict(state() | {"more": torch.ones(1)}), refused=False)
    add("learned scales of nowhere", state(), refused=False, learned_scales={"x.guide_log_scale": [1.0, "float32"]})
    add(
        "a learned scale that is huge",
        state(),
        refused=False,
        plan=plan() | {"swaps": [plan()["swaps"][0] | {"learn_scale": True}]},
        learned_scales={"target.guide_log_scale": [1e308, "float32"]},
    )
    return made


# --- metadata ---------------------------------------------------------------------------------------------------

ARCHITECTURES = [
    'os:system?command="touch {trap}/os"',
    "trap_module:run",
    "torch:load?f={trap}/x.pt&weights_only=false",
    "torchvision:../../trap_module",
    "torchvision:__init__",
    "torchvision:get_model",
    "torchvision:alexnet?weights=DEFAULT",
    "torchvision:fcn_resnet50?weights_backbone=DEFAULT",
    "torchvision:alexnet?num_classes=1000000000",
    "torchvision:alexnet?num_classes=99999999",
    "torchvision:alexnet?num_classes=-1",
    "torchvision:alexnet?num_classes=[[[[1]]]]",
    "torchvision:vgg19",
    "torchvision:regnet_y_128gf",
    "torchvision:resnet50?width_per_group=30000",
    "timm:test_resnet?layers=[100000,1,1,1]",
    "timm:test_vit?depth=10000000",
    "timm:test_vit?depth=99999",
    "timm:vit_giant_patch14_224",
    "timm:eva02_enormous_patch14_clip_224",
    "timm:vit_tiny_patch16_224?img_size=100000",
    "timm:hf-hub:evil/model",
    "timm:test_resnet?pretrained=true",
    "timm:test_resnet?checkpoint_path=/etc/passwd",
    "timm:test_resnet?pretrained_cfg_overlay={{}}",
    "timm:test_resnet?features_only=true",
    "timm:test_resnet?act_layer=os.system",
    "timm:test_resnet?block=eval",
    "timm:test_resnet?global_pool=../../x",
    "hf:evil/model",
    "smp:Unet?encoder_weights=imagenet",
    "local-dir:/etc",
    "https://evil.example/model.pt",
    "../../../../etc/passwd",
    "torchvision:alexnet?" + "&".join(f"a{{i}}{i}=1" for i in range(60)),
    "torchvision:" + "a" * 10_000,
    "torchvision:alexnet?x=" + "[" * 900,
    "torchvision:\x1b[2J",
    "torchvision:alexnet\n",
    "torchvision:alexnet?num_classes=1" + "0" * 400,
    "torchvision:alexnet?dropout=1e400",
    "torchvision:alexnet?dropout=NaN",
]


def metadata(trap):
    """What a file says of itself: networks it may not ask for, plans for others, JSON that is none."""
    texts = {
        f"architecture {index} {text[:40]!r}": entry(
            architecture=text.replace("{trap}", str(trap)).replace("{{}}", "{}")
        )
        for index, text in enumerate(ARCHITECTURES)
    }
    huge = "1" + "0" * 400
    texts |= {
        "deep JSON": "[" * 100_000,
        "deep JSON inside": entry().replace('"plan": {', '"plan": {"x": ' + "[" * 50_000 + "]" * 50_000 + ", "),
        "deep plan": entry(plan=json.loads('{"swaps":' * 400 + "[]" + "}" * 400)),
        "a huge whole number": entry().replace("0.3", huge),
        "a huge number": entry().replace("0.3", "1e400"),
        "a number of 5000 digits": entry().replace("0.3", "9" * 5000),
        "a long fraction": entry().replace("0.3", "0." + "3" * 10**6),
        "no number": entry().replace("0.3", "NaN"),
        "format version true": entry().replace('"format_version": 3', '"format_version": true'),
        "format version 10^14": entry().replace('"format_version": 3', '"format_version": 99999999999999'),
        "keys twice": entry()[:-1] + ', "architecture": "os:system"}',
        "half a character": entry(hotswap="\ud800"),
        "escapes": entry(hotswap="\x1b[2J\n"),
        "a million spaces": entry() + " " * 10**6,
        "null bytes": entry() + "\0",
        "ten thousand swaps": entry(plan=plan() | {"swaps": plan()["swaps"] * 10_000}),
        "ten thousand notes": entry(plan=plan() | {"notes": ["note\x1b[2J"] * 10_000}),
        "ten thousand scales": entry(
            learned_scales={f"{i}.guide_log_scale": [1.0, "float32"] for i in range(10_000)}
        ),
    }
    texts |= {
        f"images {index}": entry(format_version=5, config=None, images=found)
        for index, found in enumerate(
            (
                {"mean": ["os:system"], "std": [1], "size": None},
                {"mean": [0.5] * 10**6, "std": [0.5] * 10**6, "size": None},
                {"mean": [0.0], "std": [1e-300], "size": None},
                {"mean": None, "std": None, "size": [10**9, 10**9]},
                {"mean": None, "std": None, "size": [[8] * 1000] * 2},
                {"mean": None, "std": None, "size": None, "\x1b[2J": 1},
            )
        )
    }
    safe = {
        "keys twice",
        "a million spaces",
        "escapes",
        "half a character",
        "a long fraction",
        "ten thousand notes",
        "ten thousand scales",
        "ten thousand swaps",
    }
    made = []
    for name, text in texts.items():
        # What an architecture may ask for is known when it is built, which reading does not do.
        refused = not name.startswith("architecture") and name not in safe and name != "format version true"
        made.append(
            Sample(
                CHECKPOINT, f"metadata {name}", ".pt", torch_bytes({"state_dict": state(), "hotswap": text}), refused
            )
        )
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        made.append(
            Sample(
                CHECKPOINT,
                f"metadata {name} safetensors",
                ".safetensors",
                safetensors_bytes(dict(state()), {"hotswap": text}),
                refused,
            )
        )
    return made


# --- plans ------------------------------------------------------------------------------------------------------


def plans():
    """Plans as JSON."""
    made = []

    def add(name, content, *, refused=True):
        text = json.dumps(content).encode() if isinstance(content, dict) else content
        made.append(Sample(PLAN, f"plan {name}", ".json", text, refused))

    good = plan()

    def swap(**changes):
        return good | {"swaps": [good["swaps"][0] | changes]}

    def resize(**changes):
        fields = {"target": "", "call": 0, "mode": "bilinear", "guide": ["input"], "guide_scale": 0.3}
        fields |= {"learn_scale": False, "footprint": 2, "deviation": None, "after_activation": True}
        return good | {"resizes": [fields | {"target_alias": None, "guide_alias": [None]} | changes]}

    add("deep", b"[" * 200_000)
    add("deep dict", b'{"swaps":' * 200_000)
    add("big", lambda: b"[" + b"[]," * 2**25 + b"[]]")
    add("swap twice", good | {"swaps": good["swaps"] * 2}, refused=False)
    add("ten thousand swaps", good | {"swaps": good["swaps"] * 10_000}, refused=False)
    add("huge number", json.dumps(swap()).replace("0.3", "9" * 400).encode())
    add("huge exponent", json.dumps(swap()).replace("0.3", "1e999").encode())
    add("not utf-8", b"\xff\xfe{}")
    add("with a mark", b"\xef\xbb\xbf" + json.dumps(good).encode(), refused=False)
    add("half a character", swap(target="\ud800"), refused=False)
    add("escapes", swap(target="a\x1b[2J\nb"), refused=False)
    odd = [None, True, -1, 0, 2**40, 10**14, 0.5, "", "x", [], {}, [[]], [None], [1, 2, 3], ["x"] * 1000, "." * 100]
    for key in good["swaps"][0]:
        for index, value in enumerate(odd):
            add(f"{key} {index}", swap(**{key: value}), refused=False)
    for key in ("target", "call", "mode", "guide", "guide_scale", "footprint", "guide_alias", "target_alias"):
        for index, value in enumerate(odd):
            add(f"resize {key} {index}", resize(**{key: value}), refused=False)
    for kernel in (
        "inv_1_0.5_fixed",
        "inv_1e308_1e308_fixed",
        "inv_0_0_fixed",
        "inv_nan_1_fixed",
        "inv_-1_-1_fixed",
        "inv__",
        "inv_1_1",
    ):
        add(f"kernel {kernel}", swap(kernel=kernel), refused=False)
    for guide in (
        ["target"],
        ["head"],
        ["input"] * 300,
        ["guide", "guide"],
        [""],
        ["re:(a+)+$"],
        ["*"],
        ["__class__"],
    ):
        add(f"guide {guide[0]} {len(guide)}", swap(guide=guide, guide_alias=[]), refused=False)
    for target in ("", "target.weight", "__class__", "guide", "stem", "head", "input", "..", "pool", "*", "target."):
        add(f"target {target}", swap(target=target), refused=False)
    add("hooks", good | {"method": "hooks"}, refused=False)
    add("hooks with odd taps", swap(taps=[["guide", 10**14]]) | {"method": "hooks"}, refused=False)
    add("hooks with taps of nowhere", swap(taps=[["nowhere", -5]]) | {"method": "hooks"}, refused=False)
    add("tap means of 1e-300", swap(conserve="mean", tap_means=[1e-300] * 9), refused=False)
    add("tap means of 1e308", swap(conserve="mean", tap_means=[1e308] * 9), refused=False)
    add("drift that is huge", good | {"drift": 10**14}, refused=False)
    return made


# --- recipes ----------------------------------------------------------------------------------------------------


def recipe():
    """A recipe for the tests' small network, as a mapping."""
    data = {"name": "runs:Noise"}
    return {
        "model": {"name": "runs:Small", "options": {"dropout": 0.1}},
        "swaps": [{"targets": ["second"], "guide": "first", "guide_scale": 0.1}],
        "data": {"train": data, "validation": data | {"options": {"count": 3}}},
        "task": {"name": "segmentation"},
        "steps": 2,
        "batch_size": 4,
        "optimiser": {"lr": 0.01, "factors": {"head": 2.0}},
        "schedule": {"name": "step", "at": [1.0]},
        "arms": {"plain": {"swaps": []}, "guided": {}},
    }


def recipes(trap):
    """Recipes as YAML: what expands, what runs code, what YAML makes of odd text."""
    good = yaml.safe_dump(recipe(), sort_keys=False)
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    merged = "a0: &a0 {k: v}\n" + "".join(
        f"a{i}: &a{i}\n" + "".join(f"  k{j}: *a{i - 1}\n" for j in range(10)) for i in range(1, 12)
    )
    merges = "a0: &a0 {k0: v, k1: v}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
    )
    texts = {
        "a billion laughs": laughs + good,
        "a billion laughs in an option": laughs.replace("a", "  a").join(["model:\n  name: x\n  options:\n", ""]),
        "a billion laughs of mappings": merged + good,
        "a billion laughs of merges": merges + good,
        "a billion laughs as a list": "\n".join(f"- {line.split(': ', 1)[1]}" for line in laughs.splitlines()),
        "a billion laughs as a key": laughs + "? *a11\n: 1\n",
        "a list that holds itself": "model: &m\n  name: x\n  options: {a: *m}\n",
        "a list that is itself": "&a [*a]",
        "a mapping that holds itself": "&a {model: *a, steps: *a}",
        "arms that hold themselves": good + "more: &m {m: *m}\n",
        "deep": "a: " + "[" * 5000,
        "deep, closed": "a: " + "[" * 3000 + "]" * 3000,
        "deep mappings": "{a: " * 3000 + "}" * 3000,
        "deep by indents": "\n".join(" " * i + "a:" for i in range(3000)),
        "os.system": f"!!python/object/apply:os.system ['touch {trap}/yaml']",
        "object": "!!python/object/new:os.mkdir [x]",
        "name": "model: !!python/name:os.system",
        "module": "model: !!python/module:trap_module",
        "unknown tag": "model: !x {}",
        "binary": "model: !!binary '@@@'",
        "good binary": "model: !!binary aGVsbG8=",
        "date": good + "seed: 2020-01-01\n",
        "no date": good + "seed: 2020-99-99\n",
        "time": good + "seed: 2020-01-01 25:61:61\n",
        "a whole number of 5000 digits": good + "seed: " + "9" * 5000 + "\n",
        "a whole number of 4000 digits": good + "seed: " + "9" * 4000 + "\n",
        "a hexadecimal number of 5000 digits": good + "seed: 0x" + "f" * 5000 + "\n",
        "a number in sixties": good + "seed: 1" + ":59" * 5000 + "\n",
        "a fraction in sixties": good + "seed: 1" + ":59" * 5000 + ".5\n",
        "no number": good + "seed: .nan\n",
        "infinite": good + "seed: .inf\n",
        "a number as a key": good + "1: 2\n",
        "null as a key": good + "null: 2\n",
        "a date as a key": good + "2020-01-01: 2\n",
        "a list as a key": good + "? [a]\n: 2\n",
        "a mapping as a key": good + "? {a: b}\n: 2\n",
        "bytes as a key": good + "? !!binary aGVsbG8=\n: 2\n",
        "bytes deep inside": "model: {name: x, options: {a: !!binary aGVsbG8=}}\n",
        "a set": "model: !!set {a, b}\n",
        "pairs": "model: !!pairs [a: b]\n",
        "an ordered mapping": "model: !!omap [a: b]\n",
        "a bad ordered mapping": "model: !!omap {a: b}\n",
        "a value": "a: =\n",
        "merge of text": "a: {<<: x}\n",
        "forty thousand keys": "".join(f"k{i}: {i}\n" for i in range(40_000)),
        "ten thousand arms": good + "".join(f"  a{i}: {{}}\n" for i in range(10_000)),
        "half a character": 'model: "\\uD800"\n',
        "half a character as a key": '"\\uD800": 1\n',
        "escapes": '"a\\e[2J\\n": 1\n',
        "null": '"a\\0": 1\n',
        "tabs": "a:\n\t- b\n",
        "two documents": "a: 1\n---\nb: 2\n",
        "directives": "%YAML 9.9\n---\na: 1\n",
        "an anchor of nothing": "a: *b\n",
        "a comment alone": "# nothing\n",
        "a long line": "a: " + "x" * 10**6 + "\n",
        "a long key": "x" * 10**6 + ": 1\n",
        "an arm like a path": good + "  ../../x: {}\n",
        "an arm like a device": good + "  CON.: {swaps: []}\n",
    }
    made = [Sample(RECIPE, f"recipe {name}", ".yaml", text.encode(), refused=False) for name, text in texts.items()]
    made.append(Sample(RECIPE, "recipe of many", ".yaml", lambda: b"a: [" + b"[]," * 2**22 + b"]"))
    made.append(Sample(RECIPE, "recipe no text", ".yaml", b"\xff\xfe\x00" + good.encode()))
    return [*made, Sample(RECIPE, "recipe in UTF-16", ".yaml", good.encode("utf-16"))]


# --- images -----------------------------------------------------------------------------------------------------


def image_bytes(kind, size=(24, 16), mode="RGB", **options):
    """A small photograph."""
    generator = np.random.default_rng(1)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = generator.integers(0, 255, (size[1], size[0], bands), dtype=np.uint8).squeeze()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def _png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, data, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + b"".join(chunks)
    return start + _png_chunk(b"IDAT", data) + _png_chunk(b"IEND", b"")


def images():
    """Pictures that are bombs, cut short or something else."""
    made = []

    def add(name, suffix, content, *, refused=True):
        made.append(Sample(IMAGE, f"image {name}", suffix, content, refused))

    zeros = zlib.compress(bytes(2**20), 9)
    bomb = b"x\x9c" + zeros_deflated(2 * GIB) + bytes(4)
    add("of 10^9 pixels", ".png", _png(31_000, 31_000, bomb))
    add("of just under the limit", ".png", _png(9000, 9000, bomb), refused=False)
    add("of 2^31 columns", ".png", _png(2**31 - 1, 1, zeros))
    add("of no columns", ".png", _png(0, 10, zeros))
    add("with a text bomb", ".png", _png(8, 8, zeros, _png_chunk(b"zTXt", b"a\0\0" + bomb)), refused=False)
    add("with a profile bomb", ".png", _png(8, 8, zeros, _png_chunk(b"iCCP", b"a\0\0" + bomb)), refused=False)
    for kind, suffix in (("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("TIFF", ".tif")):
        whole = image_bytes(kind)
        add(f"{kind} cut", suffix, whole[: len(whole) // 2])
        add(f"{kind} start alone", suffix, whole[:12])
        add(f"{kind} under another name", ".png", whole, refused=False)
    add("GIF", ".png", image_bytes("GIF", mode="L"), refused=False)
    add("EPS", ".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")
    add("SVG", ".png", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
    add("text", ".jpg", b"hello")
    add("empty", ".jpg", b"")
    add("grey with alpha", ".png", image_bytes("PNG", mode="LA"), refused=False)
    add("one pixel", ".png", image_bytes("PNG", size=(1, 1)), refused=False)
    return made


# --- states of runs ---------------------------------------------------------------------------------------------


def run_state():
    """What a run's state.pt holds, before it is written."""
    plain = {key: value for key, value in recipe().items() if key != "arms"}
    known = {"format": 1, "recipe": plain, "plan": plan(), "record": {"history": []}}
    return {"hotswap_run": json.dumps(known), "trainer": {}}


def states(trap):
    """States of runs."""
    made = []

    def add(name, content, *, refused=True):
        made.append(Sample(STATE, f"state {name}", ".pt", content, refused))

    for name, how in traps.gadgets(trap).items():
        add(name, torch_bytes(run_state() | {"x": _Calls(*how)}))
    for text in ("[]", "{}", "7", "null", '{"format": 1}', '{"format": 2}', "[" * 100_000, "{", '"x"'):
        add(f"that says {text[:20]}", torch_bytes(run_state() | {"hotswap_run": text}))
    for key, value in (("recipe", 3), ("plan", []), ("plan", {"swaps": 1}), ("record", []), ("record", {"x": 1})):
        known = json.loads(run_state()["hotswap_run"]) | {key: value}
        add(f"with {key} {value}", torch_bytes(run_state() | {"hotswap_run": json.dumps(known)}))
    add("without a trainer", torch_bytes({"hotswap_run": run_state()["hotswap_run"]}))
    add("that is a list", torch_bytes([1]))
    add("that is a tensor", torch_bytes(torch.ones(2)))
    for name, content in bombs().items():
        add(f"bomb {name}", _zipped(content))
    size = 3 * GIB
    add("zip bomb", archive([(b"archive/data.pkl", zeros_deflated(size), 8, size)]))
    return made


# --- anything ---------------------------------------------------------------------------------------------------


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
