"""kill -9 at moments drawn at random: afterwards there is the old file or the new one, and it loads."""

import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import tiny_recipe
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import hotswap
from recipes import checkpointing

NET = "tools.attack.kills:Wide"
_TEMPORARY = ".hotswap-*"
_WHILE_WRITING = 0.6  # the share of kills that wait until a file is being written


class Wide(nn.Module):
    """Few layers with many weights, so that most of a command's time is writing."""

    def __init__(self) -> None:
        super().__init__()
        self.guide = nn.Conv2d(3, 256, 3, padding=1)
        self.target = nn.Conv2d(256, 256, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """A target, guided by what it is given."""
        enlarged: Tensor = self.target(self.guide(image).relu())
        return enlarged


class Command:
    """A command to be killed: what it starts from, and what may be left of it."""

    arguments: list[Any]

    def __init__(self, work: Path) -> None:
        self.work, self.folder = work, work / "out"

    def prepare(self) -> None:
        """Put the folder back to where the command begins."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def finished(self) -> None:
        """Keep what the command writes when nobody disturbs it."""
        raise NotImplementedError

    def check(self, resume: bool) -> str:
        """A word for what is left, which must be whole."""
        raise NotImplementedError


class Writes(Command):
    """A command that replaces a checkpoint: `convert`, or `calibrate`."""

    def __init__(self, work: Path, name: str) -> None:
        super().__init__(work)
        torch.manual_seed(0)
        net = Wide()
        torch.save(net.state_dict(), self.work / "weights.pth")
        hotswap.save(hotswap.convert(net, "target", "guide"), self.work / "swapped.safetensors")
        (self.work / "photos").mkdir(exist_ok=True)
        Image.effect_noise((8, 8), 60).convert("RGB").save(self.work / "photos" / "a.png")
        self.old = (self.work / "swapped.safetensors").read_bytes()
        out = self.folder / "out.safetensors"
        size = ("--input-size", "8")
        self.arguments = {
            "convert": [
                "convert",
                NET,
                "--weights",
                self.work / "weights.pth",
                "--target",
                "target",
                "--guide",
                "guide",
            ],
            "calibrate": [
                "calibrate",
                self.work / "swapped.safetensors",
                "--model",
                NET,
                "--images",
                self.work / "photos",
            ],
        }[name] + [*size, "-o", out]
        if name == "convert":
            self.arguments += ["--guide-scale", "0.5"]
        self.new = b""

    def prepare(self) -> None:
        """Put the folder back, with the old file in it."""
        super().prepare()
        (self.folder / "out.safetensors").write_bytes(self.old)

    def finished(self) -> None:
        """Keep what the command writes when nobody disturbs it."""
        self.new = (self.folder / "out.safetensors").read_bytes()
        assert self.new != self.old

    def check(self, resume: bool) -> str:
        """Which of the two is there: "old" or "new"."""
        file = self.folder / "out.safetensors"
        content = file.read_bytes()
        assert content in (self.old, self.new), "it is neither the old file nor the new one"
        hotswap.load(file, Wide())
        return "old" if content == self.old else "new"


class Finetunes(Command):
    """`finetune` of a tiny recipe that saves after every step."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        swaps = [{"targets": ["second"], "guide": "first", "guide_scale": 0.1}]
        recipe = tiny_recipe.recipe(swaps=swaps, evaluation={"every": 1}, save_every=1, steps=6)
        (self.work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        self.arguments = ["finetune", self.work / "recipe.yaml", "--output-dir", self.folder, "--quiet"]
        self.weights: dict[str, Tensor] = {}

    def prepare(self) -> None:
        """Put the folder back, with the old file in it."""
        super().prepare()
        self.folder.rmdir()  # the command makes it

    def finished(self) -> None:
        """Keep the weights that a run ends with which nobody disturbs."""
        self.weights = tiny_recipe.weights(self.folder)

    def check(self, resume: bool) -> str:
        """All that is there loads; with `resume` the run goes on, to the same weights."""
        left = {path.name for path in self.folder.glob("*")} if self.folder.exists() else set()
        for name in ("best.safetensors", "last.safetensors"):
            if name in left:
                hotswap.load(self.folder / name, tiny_recipe.Small())
        if "state.pt" in left:
            checkpointing.read(self.folder / "state.pt")
        if "result.json" in left:
            json.loads((self.folder / "result.json").read_text())
        if resume:
            again = tiny_recipe.process([str(a) for a in [*self.arguments, "--resume"]])
            again.join()
            assert again.exitcode == 0, f"--resume ended with {again.exitcode}"
            assert tiny_recipe.same(tiny_recipe.weights(self.folder), self.weights), (
                "--resume ended with other weights"
            )
        return "saved" if "state.pt" in left else "nothing yet"


def commands(work: Path) -> dict[str, Command]:
    """The commands, by name."""
    folders = {name: work / name for name in ("convert", "calibrate", "finetune")}
    for folder in folders.values():
        folder.mkdir()
    return {name: Finetunes(x) if name == "finetune" else Writes(x, name) for name, x in folders.items()}


def kill(command: Command, chance: random.Random, seconds: float, resume: bool) -> tuple[str, str]:
    """Start the command, kill it at a moment drawn at random, and look at what is left: a word, and how it was."""
    command.prepare()
    process = tiny_recipe.process([str(a) for a in command.arguments])
    writing = chance.random() < _WHILE_WRITING
    if writing:
        delay = chance.expovariate(1 / 0.004)  # about as long as writing takes
        skipped = chance.randrange(20)
        seen: set[Path] = set()
        while process.is_alive():
            seen |= set(command.folder.glob(_TEMPORARY)) if command.folder.exists() else set()
            if len(seen) > min(skipped, 0 if isinstance(command, Writes) else 20):
                break
            time.sleep(0.0002)
        time.sleep(delay)
    else:
        process.join(chance.uniform(0, 1.05 * seconds))
    process.kill()
    process.join()
    left = len(list(command.folder.glob(_TEMPORARY))) if command.folder.exists() else 0
    word = command.check(resume)
    return word, "done before" if process.exitcode == 0 else "killed while writing" if left else "killed"


def run(count: int, seed: int) -> dict[str, Any]:
    """Kill each command `count` times; counts of what was left, and what was wrong with it."""
    chance = random.Random(seed)  # noqa: S311 (nothing secret)
    outcomes: dict[str, dict[str, int]] = {}
    violations: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for name, command in commands(Path(work)).items():
            command.prepare()
            began = time.perf_counter()
            undisturbed = tiny_recipe.process([str(a) for a in command.arguments])
            undisturbed.join()
            seconds = time.perf_counter() - began
            command.finished()
            counts = outcomes[name] = dict[str, int]()
            for number in range(count):
                try:
                    word, how = kill(command, chance, seconds, resume=number % 15 == 0)
                    key = f"{how}, left: {word}"
                except Exception as error:  # noqa: BLE001 (whatever it is, it is to be told)
                    key = "wrong"
                    violations.append(f"{name} {number}: {type(error).__name__}: {error}")
                counts[key] = counts.get(key, 0) + 1
    return {"kills": count, "outcomes": outcomes, "violations": violations}
