"""A recipe small enough to run many times, and ways to run it."""

import os
from pathlib import Path

import forks
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from recipes import __main__ as command
from recipes import engine, reading


class Noise(Dataset):
    """Images of noise; the label of a pixel is whether its first channel is bright."""

    def __init__(self, count=8, size=8):
        generator = torch.Generator().manual_seed(7)
        self.images = torch.rand(count, 3, size, size, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        labels = (self.images[index, 0] > 0.5).long()
        labels[0, : index % 3] = 255  # so that images differ in how many pixels count
        return self.images[index], labels


class Small(nn.Module):
    """Two convolutions, dropout between, at half the size and back."""

    def __init__(self, classes=2, norm=False, dropout=0.1):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, classes, 1)

    def forward(self, image):
        x = self.dropout(self.norm(self.first(image)).relu())
        x = self.head(self.second(x).relu())
        return nn.functional.interpolate(x, scale_factor=2, mode="bilinear")


def recipe(**changes):
    """A recipe as a mapping; top-level keys replaced."""
    data = {"name": "tiny_recipe:Noise"}
    return {
        "model": {"name": "tiny_recipe:Small"},
        "data": {"train": data, "validation": data | {"options": {"count": 3}}},
        "task": {"name": "segmentation"},
        "steps": 6,
        "batch_size": 4,
        "optimiser": {"lr": 0.01},
    } | changes


def written(folder, **changes):
    """The same in a file."""
    path = Path(folder) / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**changes), sort_keys=False))  # arms have an order
    return path


def invoke(*arguments):
    """Run the command line here."""
    return CliRunner().invoke(command.main, [str(a) for a in arguments])


def arguments(path, folder, *more):
    return ["finetune", str(path), "--output-dir", str(folder), "--quiet", *map(str, more)]


def finetune(path, folder, *overrides, **options):
    """Carry out a recipe here; its results by arm."""
    return engine.finetune(reading.read(path, overrides), folder, **options)


def process(arguments, **environment):
    """Run the command line in a process of its own, a fork of one that has imported everything and done nothing."""
    return forks.start(_run, arguments, environment)


def _run(arguments, environment):
    os.environ.update(environment)
    command.main(arguments)


def weights(folder, name="last.safetensors"):
    return load_file(Path(folder) / name)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())
