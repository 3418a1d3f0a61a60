"""Networks to be saved, and how two of them compare."""

import json

import networks
import torch

import hotswap
from hotswap.checkpoint.metadata import FORMAT_VERSION

SUFFIXES = [".safetensors", ".pt"]
SMALL = "torchvision:mobilenet_v3_small?num_classes=3"


def swapped(**options):
    return hotswap.convert(networks.Plain(), "target", "guide", **options)


def same(a, b):
    """Bit-identical entries, in the same dtypes."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plain_state():
    torch.manual_seed(3)
    return networks.Plain().state_dict()


IMAGES = {"mean": None, "std": None, "size": None}


def entry(**changes):
    """An entry of the format that is written, with changes."""
    content = {"hotswap": "0.1.0", "architecture": None, "plan": None, "learned_scales": {}}
    content |= {"format_version": FORMAT_VERSION, "config": None, "images": IMAGES, "protocol": None}
    return json.dumps(content | changes)
