"""Commands that write to such places and read from them, and what must be true of what came of it."""

import json
import os
import shutil
import signal
import stat
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import attempts
import networks
import tiny_recipe
import torch
import traps
from click.testing import CliRunner
from PIL import Image
from places import INPUTS, OLD, OUTPUTS

import hotswap
from hotswap.checkpoint.read import read
from recipes import tensorboard
from recipes.__main__ import main

_ELSEWHERE = ("open ", "os.re", "os.mk", "os.rm")  # events of files, among all that traps hear
_CACHE = "torchinductor"  # torch's own
SECONDS = 120  # that a command may take: reading a pipe that nobody writes to takes for ever


@dataclass(frozen=True)
class Writes:
    """A command that writes: the name of the file that is looked at, and its words for a path."""

    name: str
    words: object  # path -> words
    folder: bool = False  # whether it is told a folder, in which it writes a file of that name


class Ground:
    """A folder with good files, and the commands that read and write them.

    Args:
        work: where; everybody must be able to enter it.
    """

    def __init__(self, work):
        self.work = Path(work)
        self.good = self.work / "good.safetensors"
        torch.manual_seed(3)
        hotswap.save(hotswap.convert(networks.Plain(), "target", "guide"), self.good)
        self.weights = self.work / "weights.pth"
        torch.save(networks.Plain().state_dict(), self.weights)
        self.plan = self.work / "plan.json"
        self.plan.write_text(json.dumps(hotswap.plan(networks.Plain(), "target", "guide").to_dict()))
        self.photos = self.work / "photos"
        self.photos.mkdir()
        Image.effect_noise((20, 16), 60).convert("RGB").save(self.photos / "a.png")
        swaps = [{"targets": ["second"], "guide": "first", "guide_scale": 0.1}]
        self.recipe = tiny_recipe.written(self.work, swaps=swaps, steps=1, evaluation={"every": 1})
        self.small = self.work / "small.safetensors"
        hotswap.save(tiny_recipe.Small(), self.small)
        self.results = self.work / "results"  # where commands write that are looked at for what they read

    @property
    def writing(self):
        """Commands by name."""
        size = ("--input-size", "16")
        own = ("--model", attempts.NET)
        photos = ("--images", self.photos)
        convert = (
            "convert",
            attempts.NET,
            "--weights",
            self.weights,
            "--target",
            "target",
            "--guide",
            "guide",
            *size,
        )
        predict = ("predict", self.recipe, "--checkpoint", self.small, *photos, "--output-dir")
        index = "out.safetensors.index.json"
        return {
            "revert": Writes("out.safetensors", lambda path: ("revert", self.good, "-o", path)),
            "revert to .pt": Writes("out.pt", lambda path: ("revert", self.good, "-o", path)),
            "revert in parts": Writes(
                index,
                lambda path: ("revert", self.good, "--max-shard-size", "1KB", "-o", str(path)[: -len(".index.json")]),
            ),
            "convert": Writes("out.pt", lambda path: (*convert, "-o", path)),
            "calibrate": Writes(
                "out.safetensors", lambda path: ("calibrate", self.good, *own, *photos, *size, "-o", path)
            ),
            "report": Writes("out.html", lambda path: ("report", self.good, *own, *photos, *size, "-o", path)),
            "export": Writes("out.onnx", lambda path: ("export", self.good, *own, *size, "-o", path)),
            "export a program": Writes("out.pt2", lambda path: ("export", self.good, *own, *size, "-o", path)),
            "finetune": Writes(
                "last.safetensors",
                lambda path: ("finetune", self.recipe, "--quiet", "--output-dir", path),
                folder=True,
            ),
            "predict": Writes("a.png", lambda path: (*predict, path), folder=True),
        }

    @property
    def reading(self):
        """Commands by name: a good file, and the words for a path in its place."""
        size = ("--input-size", "16")
        own = ("--model", attempts.NET)
        photos = ("--images", self.photos)
        convert = ("convert", attempts.NET, *size, "--dry-run")
        chosen = ("--target", "target", "--guide", "guide")
        return {
            "verify": (self.good, lambda path: ("verify", path, *own, *size)),
            "diff": (self.good, lambda path: ("diff", self.good, path)),
            "convert, weights": (self.weights, lambda path: (*convert, *chosen, "--weights", path)),
            "convert, plan": (self.plan, lambda path: (*convert, "--plan", path)),
            "finetune": (self.recipe, lambda path: ("finetune", path, "--output-dir", self.results / "run")),
            "evaluate": (self.small, lambda path: ("evaluate", self.recipe, "--checkpoint", path)),
            "predict": (
                self.small,
                lambda path: (
                    *("predict", self.recipe, "--checkpoint", path, *photos),
                    *("--output-dir", self.results / "pages"),
                ),
            ),
        }

    def attack(self, command, place):
        """Have a command write to a place; what is wrong with what came of it, nothing as it should be."""
        writes = self.writing[command]
        with self._folder() as folder, OUTPUTS[place](folder, writes.name) as found:
            own = Path(os.path.realpath(found.path.parent))  # where there is a loop too
            path = found.path.parent if writes.folder else found.path

            def may_change(path):
                return path.parent == own or path in own.parents or own / tensorboard.FOLDER in path.parents

            wrong = self._tried(writes.words(path), found, may_change)
            return wrong or ([] if found.refused else _why_not_whole(path / writes.name if writes.folder else path))

    def attack_by_input(self, command, place):
        """Have a command read from a place."""
        good, words = self.reading[command]
        with self._folder() as folder, INPUTS[place](folder, good) as found:
            return self._tried(words(found.path), found, lambda path: self.results in (path, *path.parents))

    @contextmanager
    def _folder(self):
        made = self.work / "place"
        made.mkdir()
        try:
            yield made
        finally:
            shutil.rmtree(made)
            shutil.rmtree(self.results, ignore_errors=True)

    def _tried(self, words, place, may_change):
        before = seen(self.work)
        with traps.watched(self.work) as events, warnings.catch_warnings(record=True) as told, _in_time():
            warnings.simplefilter("always", UserWarning)
            done = CliRunner().invoke(main, [os.fspath(word) for word in words])
        wrong = [f"it did {event}" for event in events if event.startswith(_ELSEWHERE) and _CACHE not in event]
        wrong += [f"warned: {text.message}" for text in told]
        error = done.exception
        if error is not None and not isinstance(error, SystemExit):
            return [*wrong, f"{type(error).__name__}: {error}"]
        after = seen(self.work)
        if done.exit_code == 0:
            wrong += ["it must be refused, and was not"] if place.refused else []
            return wrong + [f"it changed {path}" for path in changed(before, after) if not may_change(path)]
        try:
            attempts.check_refusal(done)
        except AssertionError as error:
            wrong.append(str(error))
        if not place.refused:
            wrong.append(f"it was refused: {done.stderr.strip()}")
        # Curves of a run that began are no output that could be taken for a whole one.
        left = [path for path in changed(before, after) if tensorboard.FOLDER not in path.parts]
        return wrong + [f"it failed, and changed {path}" for path in left]


def seen(folder):
    """Everything below a folder, by path: what it is, and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        kind = stat.S_IFMT(about.st_mode)
        content = None
        if stat.S_ISLNK(kind):
            content = os.fspath(path.readlink())
        elif stat.S_ISREG(kind) and os.access(path, os.R_OK):
            content = path.read_bytes()
        found[path] = (kind, content)
    return found


def changed(before, after):
    """Paths that are new, gone or other than before."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _why_not_whole(path):
    if path.read_bytes() in (b"", OLD):
        return [f"it did not write {path}"]
    if path.suffix in (".pt", ".safetensors") or path.name.endswith(".index.json"):
        read(path)
    return []


@contextmanager
def _in_time():
    before = signal.signal(signal.SIGALRM, attempts.too_slow)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
