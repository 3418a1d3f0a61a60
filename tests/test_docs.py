"""Every Python block and every command of the README and the docs runs, as written.

Each in a process of its own: a Python block in an empty folder, the commands of a page one after the other in a folder
that holds what they take for granted: trained weights, photos, data sets. Only what would take minutes is made smaller,
see `STAND_INS` and `SETTINGS`.
"""

import importlib.util
import itertools
import os
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import click
import forks
import networks
import numpy as np
import published_files
import pytest
import tiny_datasets
import torch
import yaml
from PIL import Image

import hotswap
from hotswap.cli import main
from hotswap.zoo import providers
from recipes import reading

ROOT = Path(__file__).parents[1]
PROJECT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = {
    page.name: page.read_text()
    for page in (*(ROOT / name for name in PROJECT), *sorted((ROOT / "docs").glob("*.md")))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n(?:\s*\n(?=    ))?)+", re.MULTILINE)
PROGRAMS = ("hotswap", "pip", "make", "python", "accelerate", "tensorboard", "pytest")


def blocks(text, language):
    return [body for name, body in FENCE.findall(text) if name == language]


PYTHON = [(f"{name}-{i}", code) for name, text in PAGES.items() for i, code in enumerate(blocks(text, "python"))]


def test_there_are_blocks_in_the_readme():
    assert len(blocks(PAGES["README.md"], "python")) >= 2


def test_no_block_is_of_a_language_that_nobody_runs():
    assert {name for text in PAGES.values() for name, _ in FENCE.findall(text)} == {"python", "sh", "yaml"}


# --- Python -----------------------------------------------------------------------------------------------


def execute(code):
    """As `python -c` does."""
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(compile(code, "<block>", "exec"), module.__dict__)  # noqa: S102 (our own docs)


IN_NO_EXTRA = {"ultralytics": "pip install --no-deps ultralytics, beside an OpenCV"}


@pytest.mark.parametrize(("name", "code"), PYTHON, ids=[name for name, _ in PYTHON])
def test_block_runs_as_written(name, code, tmp_path):
    for library, install in IN_NO_EXTRA.items():
        if f"from {library} import" in code and importlib.util.find_spec(library) is None:
            pytest.skip(install)
    status, _, errors = forks.run(execute, code, folder=folder(tmp_path))
    assert status == 0, errors


def folder(tmp_path):
    (found := tmp_path / "work").mkdir()
    return found


# --- commands ---------------------------------------------------------------------------------------------


def commands(text):
    """Every command of a page with what it is said to print, None where nothing is said."""
    bodies = [*blocks(text, "sh"), *INDENTED.findall(FENCE.sub("", text))]
    return [found for body in sorted(bodies, key=text.index) for found in of_block(body)]


def of_block(body):
    lines = re.sub(r"\\\n\s*", "", body).splitlines()
    found = []
    for line in (line.removeprefix("    ") for line in lines):
        if (prompted := line.startswith("$ ")) or line.split(" ")[0] in PROGRAMS:
            found.append((shlex.join(shlex.split(line.removeprefix("$ "), comments=True)), [] if prompted else None))
        elif found and found[-1][1] is not None:
            found[-1][1].append(line)
    return [(line, "\n".join(said) or None if said is not None else None) for line, said in found]


def on_first_page(pages):
    """A command that several pages show runs on the first of them."""
    seen = set()
    for name, text in pages.items():
        found = [entry for entry in commands(text) if entry[0] not in seen]
        seen |= {line for line, _ in found}
        if found:
            yield name, found


COMMANDS = dict(on_first_page(PAGES))
MAKE = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SETTINGS = {  # of what would take minutes, or start processes of its own
    "export": ["--static"],
    "quickstart": ["--max-steps=1", "--set=data.train.options.count=8", "--set=data.validation.options.count=2"],
    "joint_depth_pac_x4": ["--set=workers=0"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_run_as_written(name, tmp_path):
    work = folder(tmp_path)
    for line, said in COMMANDS[name]:
        words = shlex.split(line)
        if words[0] != "hotswap":
            words = other(words)
        if words is not None:
            prepare(name, words, work)
            status, out, errors = forks.run(command, words, folder=work)
            assert status == (0 if said is None or "Error" not in said else 1), (line, out + errors)
            if said is not None:
                assert without_numbers(out + errors) == without_numbers(said), line


def other(words):
    """Of a command that is not ours: that it exists. What it starts of ours is returned, to be run."""
    match words:
        case ["make", *targets]:
            assert set(targets) <= MAKE
        case ["pip", "install", what]:
            assert re.fullmatch(r"(hotswap|\.)(\[\w+\])?", what)
            assert set(re.findall(r"\[(\w+)\]", what)) <= EXTRAS.keys()
        case ["accelerate", "launch", "-m", "recipes", *arguments]:
            return ["hotswap", *arguments]
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case _:
            pytest.fail(f"nobody checks {words}")
    return None


def without_numbers(text):
    return re.sub(r"\d+", "N", text).strip()


def command(words):
    """Run `hotswap ...`, its output to a file where the last words say so."""
    for setting in STAND_INS:
        setting()
    if ">" in words:
        *words, _, path = words
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)
    settings = [setting for word in words[1:3] for setting in SETTINGS.get(word, [])]
    main([*words[1:], *settings], prog_name="hotswap")


# --- what commands take for granted -----------------------------------------------------------------------


def small_networks():
    from torchvision.models import _api

    _api.BUILTIN_MODELS["vgg16"] = networks.thin_vgg16
    _api.BUILTIN_MODELS["lraspp_mobilenet_v3_large"] = networks.thin_lraspp


def small_data():
    """Whole data sets are as large as the tiny ones."""
    from recipes.data import nyu
    from recipes.data.check import KINDS

    KINDS["voc"].sizes = dict(zip(KINDS["voc"].sizes, (6, 2), strict=True))
    nyu.COUNT, nyu.TRAIN = 6, 4


def small_fcn8s():
    from recipes.networks import fcn8s

    fcn8s.STAGES = published_files.NARROW


STAND_INS = (small_networks, small_data, small_fcn8s)

NETS = """
from collections import OrderedDict
from torch import nn

def segmenter():
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    return nn.Sequential(OrderedDict(body=body, head=nn.Conv2d(4, 2, 1)))

def coarse():
    up = nn.Upsample(scale_factor=8, mode="bilinear")
    return nn.Sequential(OrderedDict(body=nn.Conv2d(3, 4, 8, 8), head=nn.Conv2d(4, 3, 1), up=up))
"""
RECIPE = """
model: {name: "recipes.backbones:SmallSegmenter", options: {classes: 6}}
data:
  train: {name: scenes, options: {count: 4, size: 32}}
  validation: {name: scenes, options: {count: 2, size: 32}}
task: {name: segmentation}
steps: 1
batch_size: 2
"""


def prepare(page, words, work):
    """Make what a command reads, unless one before it has."""
    for before, word in itertools.pairwise(words):
        path = work / word.rstrip("/")
        if path.exists():
            continue
        if word.endswith(("photos", "photos/")):
            path.mkdir()
            for i in range(2):
                tiny_datasets.picture(path / f"{i}.jpg", (40, 48))
        elif before == "enlarge" or (words[1] == "enlarge" and path.suffix == ".jpg"):
            a_map_or_its_image(path)
        elif word == "my.yaml":
            path.write_text(my_recipe(page))
        elif word.startswith("mynets:"):
            (work / "mynets.py").write_text(NETS)
        elif word.startswith("data/"):
            tiny_datasets.voc(path, tiny_datasets.LISTS)
        elif word.endswith(("labels", "labels/")):
            labelled_photos(work / "photos", path)
        elif before == "migrate":
            forks.run(save_published, path, folder=work)
        elif before == "--weights":
            forks.run(save_weights, words[2], path, folder=work)
        elif before in ("export", "verify", "calibrate", "report") and path.suffix:
            net = providers.build("timm:test_resnet", trusted=True)
            hotswap.save(hotswap.convert(net, guide_scale=0.5), path, "timm:test_resnet")
    if "joint_depth_pac_x4" in words:
        (work / "data" / "nyu").mkdir(parents=True)
        tiny_datasets.nyu(work / "data" / "nyu", (24, 32), count=6)


def a_map_or_its_image(path):
    if path.suffix == ".jpg":
        tiny_datasets.picture(path, (40, 48))
    elif path.suffix == ".npy":
        np.save(path, np.random.default_rng(0).normal(size=(4, 10, 12)).astype(np.float32))
    else:
        Image.fromarray(np.arange(120, dtype=np.uint16 if "depth" in path.stem else np.uint8).reshape(10, 12)).save(
            path
        )


def labelled_photos(photos, labels):
    """As many as a search needs at least, each with a label."""
    labels.mkdir()
    for i in range(8):
        tiny_datasets.picture(photos / f"{i}.jpg", (40, 48))
        Image.fromarray(np.tile(np.arange(48, dtype=np.uint8) // 16, (40, 1))).save(labels / f"{i}.png")


def save_published(path):
    small_fcn8s()
    torch.save(
        published_files.crf((64, 16)) if "pac" not in path.stem else published_files.upsampling(4, False), path
    )


def save_weights(network, path):
    small_networks()
    torch.save(providers.build(network, trusted=True, initialise=True).state_dict(), path)


def my_recipe(page):
    """A recipe in a minute's size, with the arms and swaps of the one on the page, if there is one."""
    small = yaml.safe_load(RECIPE)
    for block in blocks(PAGES[page], "yaml"):
        small |= {
            key: value for key, value in yaml.safe_load(block).items() if key in ("swaps", "calibration", "arms")
        }
    return yaml.safe_dump(small, sort_keys=False)


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if blocks(text, "yaml")])
def test_recipes_are_valid(name, tmp_path):
    for block in blocks(PAGES[name], "yaml"):
        (tmp_path / "my.yaml").write_text(block)
        assert reading.read(str(tmp_path / "my.yaml"))


# --- commands in sentences, links, pictures ---------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_commands_in_sentences_exist(name):
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", PAGES[name])):
        words = span.split()
        if words[0] == "hotswap" and len(words) > 1:
            check_words(words[1:])
        elif words[0] in ("make", "pip") or words[:2] == ["python", "-m"]:
            other(shlex.split(span))


def check_words(words):
    """Commands and options of ours that are named without all they need."""
    found, context = main, click.Context(main)
    while isinstance(found, click.Group) and words and words[0].islower() and not words[0].startswith("-"):
        found = found.get_command(context, words.pop(0))
        assert found is not None
    options = {name for option in found.get_params(click.Context(found)) for name in option.opts} | {"--help"}
    if words and words[0] not in ("COMMAND", "..."):
        assert {word for word in words if word.startswith("-")} <= options


def test_links_between_pages_lead_somewhere():
    for name, text in PAGES.items():
        here = ROOT if name in PROJECT else ROOT / "docs"
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert link.startswith("https://") or (here / link).exists() or link == "reference/commands.md", (
                name,
                link,
            )
