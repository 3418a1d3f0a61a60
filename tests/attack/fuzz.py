"""Files with something wrong by chance: each is a function of a seed and its number."""

import base64
import collections
import functools
import json
import random
import struct

import torch
import yaml
from hostile import samples
from hostile.headers import safetensors_file
from hostile.images import image_bytes
from hostile.samples import CHECKPOINT, IMAGE, PLAN, RECIPE, STATE, Sample
from safetensors.torch import save as safetensors_bytes

ODD = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    -(2**31),
    2**53,
    10**14,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
]
ODD += [" ", "\0", "\x1b[2J", "../../etc/passwd", "os:system", "re:(", "*", "__class__", "input", "é" * 50, "\ud800"]
ODD += [[], {}, [[]], [{}], {"": ""}, {"x": [1]}, ["x"] * 50, [0, 0], "x" * 5000]
INTERESTING = [
    b"\0",
    b"\xff",
    b"\x80",
    b"\x7f",
    b"\0" * 8,
    b"\xff" * 8,
    struct.pack("<Q", 2**63),
    struct.pack("<I", 2**31),
]
INTERESTING += [
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"\x80\x02",
    b"{",
    b"}",
    b'"',
    b"[",
    b"]",
    b",",
    b".",
    b"R",
    b"cos\nsystem\n",
]
INTERESTING += [
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!",
    b"? ",
    b"- ",
    b"9" * 30,
    b"1e999",
    b"NaN",
    b"\n",
    b"\\u0000",
    b"\xed\xa0\x80",
]


@functools.cache
def seeds():
    """Good files of every kind to begin with: (kind, suffix, bytes)."""
    small = {"state_dict": samples.state(), "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    ours = {"state_dict": samples.state(), "hotswap": samples.entry()}
    named = safetensors_bytes(dict(samples.state()), {"hotswap": samples.entry()})
    state = samples.run_state() | {"trainer": {"step": 3, "model": samples.state()}}
    found = [
        (CHECKPOINT, ".safetensors", named),
        (CHECKPOINT, ".safetensors", safetensors_bytes(dict(samples.state()))),
        (CHECKPOINT, ".pt", samples.torch_bytes(ours)),
        (CHECKPOINT, ".pth", samples.torch_bytes(small)),
        (CHECKPOINT, ".pth", samples.torch_bytes(small, _use_new_zipfile_serialization=False)),
        (CHECKPOINT, ".pt", samples.torch_bytes({"model": {f"module.{k}": x for k, x in samples.state().items()}})),
        (PLAN, ".json", json.dumps(samples.plan(), indent=1).encode()),
        (RECIPE, ".yaml", yaml.safe_dump(samples.recipe(), sort_keys=False).encode()),
        (STATE, ".pt", samples.torch_bytes(state)),
    ]
    kinds = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
    return [*found, *((IMAGE, suffix, image_bytes(kind)) for kind, suffix in kinds.items())]


# Checkpoints are what people download from strangers, so most files are those.
_WEIGHTS = collections.Counter({CHECKPOINT: 10, PLAN: 12, RECIPE: 12, STATE: 4, IMAGE: 3})


def sample(seed, number):
    """The file of a number, always the same."""
    chance = random.Random(f"{seed}:{number}")  # noqa: S311 (nothing secret)
    choices = seeds()
    kind, suffix, content = chance.choices(choices, [_WEIGHTS[kind] for kind, _, _ in choices])[0]
    if chance.random() < 0.5:
        how = chance.choice((_tree, _inner_pickle, _entry, _header))
        changed = how(chance, kind, suffix, content)
        if changed is not None:
            return Sample(
                kind, f"{seed}:{number} {how.__name__.strip('_')} of {suffix}", suffix, changed, refused=False
            )
    names = []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        how = chance.choice(_BYTES)
        names.append(how.__name__.strip("_"))
        content = how(chance, content)
    return Sample(kind, f"{seed}:{number} {', '.join(names)} of {suffix}", suffix, content, refused=False)


def choose(seed, number):
    """Which attempts to make with that file: reading and loading always, and one of the commands."""
    chance = random.Random(f"attempts {seed}:{number}")  # noqa: S311 (nothing secret)

    def chosen(attempts):
        first = [
            a
            for a in attempts
            if a[0] in ("read", "load", "read_plan", "reading", "images.read", "checkpointing.read")
        ]
        rest = [a for a in attempts if a not in first]
        return first + chance.sample(rest, min(1, len(rest)))

    return chosen


# --- bytes ------------------------------------------------------------------------------------------------------


def _place(chance, content):
    """Near either end, where headers are, or anywhere."""
    if not content:
        return 0
    end = len(content)
    return chance.choice(
        (chance.randrange(min(end, 600)), end - 1 - chance.randrange(min(end, 600)), chance.randrange(end))
    )


def _flip(chance, content):
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[_place(chance, changed)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(chance, content):
    return content[: _place(chance, content)]


def _cut_front(chance, content):
    return content[_place(chance, content) :]


def _remove(chance, content):
    start = _place(chance, content)
    return content[:start] + content[start + chance.choice((1, 2, 8, 100)) :]


def _repeat(chance, content):
    start, length = _place(chance, content), chance.choice((1, 8, 100, 5000))
    return content[:start] + content[start : start + length] * chance.choice((2, 3, 50)) + content[start + length :]


def _insert(chance, content):
    start = _place(chance, content)
    return content[:start] + chance.choice(INTERESTING) + content[start:]


def _overwrite(chance, content):
    start, new = _place(chance, content), chance.choice(INTERESTING)
    return content[:start] + new + content[start + len(new) :]


def _random_bytes(chance, content):
    start, length = _place(chance, content), chance.choice((1, 4, 8, 60))
    return content[:start] + chance.randbytes(length) + content[start + length :]


def _move(chance, content):
    start, length, to = _place(chance, content), chance.choice((8, 60, 1000)), _place(chance, content)
    piece, rest = content[start : start + length], content[:start] + content[start + length :]
    return rest[:to] + piece + rest[to:]


def _splice(chance, content):
    _, _, other = chance.choice(seeds())
    return content[: _place(chance, content)] + other[_place(chance, other) :]


def _number(chance, content):
    """Change a number that is written in digits."""
    digits = [i for i, c in enumerate(content[:20_000]) if 48 <= c <= 57]
    if not digits:
        return _flip(chance, content)
    start = chance.choice(digits)
    new = chance.choice((b"0", b"-1", b"9" * 20, b"1e400", b"4294967296", b"2147483648", b"0.5", b"null", b"01"))
    return content[:start] + new + content[start + 1 :]


_BYTES = (
    _flip,
    _flip,
    _cut,
    _cut_front,
    _remove,
    _repeat,
    _insert,
    _overwrite,
    _random_bytes,
    _move,
    _splice,
    _number,
)


# --- structures -------------------------------------------------------------------------------------------------


def mutated(chance, tree, times=None):
    """JSON values with some replaced, left out, doubled or nested."""
    for _ in range(times or chance.choice((1, 1, 2, 5))):
        tree = _mutate(chance, tree)
    return tree


def _mutate(chance, tree):
    if isinstance(tree, dict) and tree and chance.random() < 0.85:
        key = chance.choice(list(tree))
        how = chance.random()
        if how < 0.75:
            return tree | {key: _mutate(chance, tree[key])}
        if how < 0.85:
            return {k: v for k, v in tree.items() if k != key}
        return tree | {chance.choice(("x", "", key + " ", "__class__", "\x1b")): tree[key]}
    if isinstance(tree, list) and tree and chance.random() < 0.85:
        at = chance.randrange(len(tree))
        how = chance.random()
        if how < 0.7:
            return [*tree[:at], _mutate(chance, tree[at]), *tree[at + 1 :]]
        if how < 0.85:
            return tree[:at] + tree[at + 1 :]
        return tree + [tree[at]] * chance.choice((1, 2, 100))
    how = chance.random()
    if how < 0.1:
        return [tree] if how < 0.05 else {"x": tree}
    if isinstance(tree, int | float) and not isinstance(tree, bool) and how < 0.5:
        return chance.choice((-tree, tree * 10**9, tree + 1, tree - 1, tree / 3, 0, 10**14, str(tree)))
    if isinstance(tree, str) and how < 0.5:
        return chance.choice((tree[:-1], tree * 2, tree.upper(), f" {tree}", tree + "\n", tree * 200, tree[::-1]))
    return chance.choice(ODD)


def _json(tree):
    return json.dumps(tree, default=str)


def _tree(chance, kind, suffix, content):
    """The plan, the recipe, or what a state says of its run, as a tree."""
    if kind == PLAN:
        return _json(mutated(chance, samples.plan())).encode()
    if kind == RECIPE:
        changed = mutated(chance, samples.recipe())
        try:
            return yaml.safe_dump(changed, sort_keys=False).encode("utf-8", "surrogatepass")
        except yaml.YAMLError:
            return None
    if kind == STATE:
        known = mutated(chance, json.loads(samples.run_state()["hotswap_run"]) | {"recipe": samples.recipe()})
        return samples.torch_bytes(samples.run_state() | {"hotswap_run": _json(known)})
    return None


def _entry(chance, kind, suffix, content):
    """The hotswap entry of a checkpoint."""
    if kind != CHECKPOINT:
        return None
    version = chance.choice((None, None, None, 1, 2, 3, 4))  # mostly what is written now
    base = json.loads(samples.entry(version, architecture="timm:test_resnet?num_classes=3"))
    text = _json(mutated(chance, base))
    if suffix == ".safetensors":
        return safetensors_bytes(dict(samples.state()), {"hotswap": text})
    return samples.torch_bytes({"state_dict": samples.state(), "hotswap": text})


def _header(chance, kind, suffix, content):
    """The header of a safetensors file."""
    if suffix != ".safetensors":
        return None
    (length,) = struct.unpack("<Q", content[:8])
    header = mutated(chance, json.loads(content[8 : 8 + length]))
    return safetensors_file(header, content[8 + length :])


def _inner_pickle(chance, kind, suffix, content):
    """The pickle inside a zip file that is otherwise in order; weights that are nonsense."""
    if suffix not in (".pt", ".pth"):
        return None
    if kind == CHECKPOINT and chance.random() < 0.3:
        return samples.torch_bytes({k: _odd_tensor(chance, x) for k, x in samples.state().items()})
    import io
    import zipfile

    if not content.startswith(b"PK"):
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in parts if name.endswith("/data.pkl"))
    for _ in range(chance.choice((1, 1, 3))):
        parts[name] = chance.choice(_BYTES)(chance, parts[name])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for part, data in parts.items():
            archive.writestr(part, data)
    return stream.getvalue()


def _odd_tensor(chance, x):
    how = chance.random()
    if how < 0.6:
        return x
    if how < 0.75:
        return torch.full_like(x, chance.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e-45, 0.0)))
    if how < 0.85:
        return x.to(
            chance.choice((torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64))
        )
    if how < 0.95:
        return x.reshape(chance.choice(((-1,), (1, -1), x.shape[::-1])))
    return chance.choice(
        (torch.ones(()), torch.ones(0), x[:1].expand(x.shape), x.to_sparse(), base64.b64encode(b"x"))
    )
