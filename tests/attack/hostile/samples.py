"""What hostile files are made of: a sample, and good content to begin with."""

import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import networks
import torch
from safetensors import safe_open

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


@functools.cache
def _written():
    """The entry that `hotswap.save` writes beside the tensors, as a mapping."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "swapped.safetensors"
        hotswap.save(hotswap.convert(networks.Plain(), "target", "guide", guide_scale=0.3), path)
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["hotswap"])


NEWER_KEYS = {4: "config", 5: "images", 6: "protocol"}  # the first format that has the key
LEARNS_TENSORS = 7  # the first format in which more than numbers is learned; it has no key of its own


def entry(version=None, **changes):
    """The same as text, with changes; `version`: as an older hotswap wrote it."""
    content = dict(_written())
    if version is not None:
        content["format_version"] = version
        for first, key in NEWER_KEYS.items():
            if version < first:
                del content[key]
    return json.dumps(content | changes)


def recipe():
    """A recipe for the tests' small network, as a mapping."""
    data = {"name": "tiny_recipe:Noise"}
    return {
        "model": {"name": "tiny_recipe:Small", "options": {"dropout": 0.1}},
        "swaps": [{"targets": ["second"], "guide": "first", "guide_scale": 0.1}],
        "data": {"train": data, "validation": data | {"options": {"count": 3}}},
        "task": {"name": "segmentation"},
        "steps": 2,
        "batch_size": 4,
        "optimiser": {"lr": 0.01, "factors": {"head": 2.0}},
        "schedule": {"name": "step", "at": [1.0]},
        "arms": {"plain": {"swaps": []}, "guided": {}},
    }


def run_state():
    """What a run's state.pt holds, before it is written."""
    plain = {key: value for key, value in recipe().items() if key != "arms"}
    known = {"format": 1, "recipe": plain, "plan": plan(), "record": {"history": []}}
    return {"hotswap_run": json.dumps(known), "trainer": {}}


class Calls:
    """An object whose pickle calls a function."""

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
