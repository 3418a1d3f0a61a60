"""A small part of the attacks, always the same one; `python -m tools.attack fuzz` makes all of them."""

import json
import random
import sys
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("memory is measured as Linux tells it", allow_module_level=True)

import attempts
import fuzz
import hostile
import torch
import traps
from hostile.samples import CHECKPOINT, IMAGE, LEARNS_TENSORS, PLAN, RECIPE, Calls, Sample, entry, state, torch_bytes

from hotswap.checkpoint.metadata import FORMAT_VERSION
from hotswap.errors import HotswapError

MUTATED = 160
ALWAYS = (
    "pickle os.system zip",
    "pickle by INST",
    "zip bomb behind",
    "pickle bomb bytearray",
    "recipe a billion laughs",
)
ALWAYS += (
    "metadata architecture 0 ",
    "metadata architecture 1 ",
    "safetensors overlapping",
    "safetensors a key twice",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield attempts.Bench(tmp_path_factory.mktemp("attack"))
    torch.set_num_threads(threads)


def told(sample, found):
    return [f"{sample.name}: {text}" for text in found.violations]


def few(number):
    """Of the attempts the first, which reads, and one other."""
    chance = random.Random(number)  # noqa: S311 (nothing secret)
    return lambda attempts: [attempts[0], *chance.sample(attempts[1:], min(1, len(attempts) - 1))]


def test_hostile_files(bench):
    slow = ("depth=", "layers=", "giant", "enormous", "img_size=", "regnet")  # seconds each, building networks
    samples = hostile.all_samples(bench.trap)
    samples = [sample for sample in samples if not sample.big and not any(word in sample.name for word in slow)]
    assert len(samples) > 900
    chosen = [s for i, s in enumerate(samples) if i % 26 == 0 or s.name.startswith(ALWAYS)]
    wrong = [text for i, s in enumerate(chosen) for text in told(s, bench.attack(s, few(i)))]
    assert not wrong


def test_hostile_metadata_is_of_the_format_that_is_written():
    assert json.loads(entry())["format_version"] == FORMAT_VERSION == LEARNS_TENSORS


SOME = (None, 1, FORMAT_VERSION)  # by default


@pytest.mark.parametrize(
    "version",
    [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, FORMAT_VERSION + 1) if n not in SOME)],
)
def test_entries_are_good_before_anything_hostile_is_put_in(bench, version):
    """So what is refused is refused for what is hostile in it."""
    content = torch_bytes({"state_dict": state(), "hotswap": entry(version)})
    outcomes = bench.attack(Sample(CHECKPOINT, "good", ".pt", content, refused=False)).outcomes
    assert outcomes["read"] == outcomes["load"] == "done"


def test_mutated_files(bench):
    outcomes, wrong = set(), []
    for number in range(MUTATED):
        sample = fuzz.sample(0, number)
        found = bench.attack(sample, few(number))
        wrong += told(sample, found)
        outcomes |= {(sample.kind, outcome) for outcome in found.outcomes.values()}
    assert not wrong
    assert outcomes >= {(kind, "refused") for kind in (CHECKPOINT, PLAN, RECIPE, IMAGE)}
    assert outcomes >= {(kind, "done") for kind in (CHECKPOINT, IMAGE)}


def test_a_mutated_file_is_a_function_of_its_number():
    assert [fuzz.sample(3, n).content for n in range(5)] == [fuzz.sample(3, n).content for n in range(5)]
    assert fuzz.sample(3, 0).content != fuzz.sample(4, 0).content


# --- the attacks can fail ---------------------------------------------------------------------------------------


def caught(bench, monkeypatch, kind, name, attempt):
    monkeypatch.setattr(bench, f"_{kind}", lambda path: [(name, lambda: attempt(path))])
    return " | ".join(bench.attack(Sample(kind, "x", ".pt", b"content", refused=False)).violations)


def refuse(message):
    """Raise an error that says this and nothing else: HotswapError itself cuts and cleans what it is given."""
    error = HotswapError()
    error.args = (message,)
    raise error


def runs_code(path):
    torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("attempt", "violation"),
    [
        (lambda path: 1 / 0, "ZeroDivisionError"),
        (lambda path: path.write_bytes(b"other"), "it changed the file"),
        (lambda path: Path("extra").touch(), "it left extra"),
        (lambda path: Path("/tmp/hotswap-attack-outside").mkdir(exist_ok=True), "it did os.mkdir"),  # noqa: S108
        (lambda path: bytearray(2**30 + 2**28), "MiB of memory"),
        (lambda path: refuse("x" * 9000), "not one short line, 9000 letters"),
        (lambda path: refuse("two\nlines"), "not one short line, 9 letters"),
        (lambda path: refuse(""), "not one short line, 0 letters"),
    ],
)
def test_what_must_not_happen_is_noticed(bench, monkeypatch, attempt, violation):
    assert violation in caught(bench, monkeypatch, CHECKPOINT, "it", attempt)
    Path("/tmp/hotswap-attack-outside").rmdir() if "mkdir" in violation else None  # noqa: S108


@pytest.mark.parametrize("gadget", ["os.system", "open", "import", "subprocess", "runpy"])
def test_the_traps_work(bench, monkeypatch, gadget):
    """Read by an unpickler that is not safe, the pickles do run."""
    content = torch_bytes({"x": Calls(*traps.gadgets(bench.trap)[gadget])})
    monkeypatch.setattr(bench, "_checkpoint", lambda path: [("unsafe", lambda: runs_code(path))])
    found = bench.attack(Sample(CHECKPOINT, gadget, ".pt", content))
    text = " | ".join(found.violations)
    assert "code ran" in text or "it did" in text
    assert "pickle.find_class" in text
