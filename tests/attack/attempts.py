"""What is tried with a file, and what must be true whatever is in it."""

import gc
import json
import logging
import os
import resource
import signal
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import networks
import torch
import traps
from click.testing import CliRunner
from hostile import samples
from PIL import Image

import hotswap
from hotswap.checkpoint.read import read, read_plan
from hotswap.errors import HotswapError
from hotswap.zoo import images, providers
from recipes import checkpointing, reading
from recipes.__main__ import main

NET = "networks:Plain"
SECONDS = 60  # that one attempt may take: far more than any needs, even on a busy machine
LONGEST = 1500  # letters of an error
_OUT_OF_MEMORY = 6 * 2**30  # where an attempt is stopped before it takes the machine with it
_OLD = b"what was there before"


class TooSlowError(BaseException):
    """Not an Exception, which the code under test might catch."""


@dataclass
class Found:
    """What came of one file."""

    outcomes: dict[str, str] = field(default_factory=dict)  # attempt: "done" or "refused"
    violations: list[str] = field(default_factory=list)
    peak: int = 0  # bytes more than before, at the worst
    seconds: float = 0.0


class Bench:
    """A folder with good files, in which files that may not be are tried."""

    def __init__(self, work):
        self.work = Path(work)
        self.trap = traps.folder(self.work)
        self.files = self.work / "files"
        self.out = self.work / "out"
        for folder in (self.files, self.out, self.work / "photos"):
            folder.mkdir(exist_ok=True)
        Image.effect_noise((20, 16), 60).convert("RGB").save(self.work / "photos" / "a.png")
        torch.manual_seed(3)
        self.good = self.work / "good.safetensors"
        self.weights = self.work / "weights.pth"
        hotswap.save(hotswap.convert(networks.Plain(), "target", "guide"), self.good)
        torch.save(samples.state(), self.weights)
        logging.getLogger("hotswap").setLevel(logging.ERROR)
        self._warm_up()

    def _warm_up(self):
        """Whatever is imported and cached at first use is not the files' to answer for."""
        for kind, content in (
            (samples.PLAN, json.dumps(samples.plan()).encode()),
            (samples.CHECKPOINT, self.good.read_bytes()),
        ):
            self.attack(
                samples.Sample(kind, "a good one", {samples.PLAN: ".json"}.get(kind, ".safetensors"), content)
            )
        for name in ("torchvision:squeezenet1_1", "timm:test_resnet"):
            providers.build(name, trusted=False)
        gc.freeze()  # torch's own objects are most of what would be looked through again and again

    def attack(self, sample, choose=None):
        """Try everything that can be tried with such a file; `choose` picks some of the attempts."""
        path = self.files / f"file{sample.suffix}"
        content = sample.bytes()
        path.write_bytes(content)
        found = Found()
        attempts = list(getattr(self, f"_{sample.kind}")(path))
        for name, attempt in attempts if choose is None else choose(attempts):
            self._try(name, attempt, path, content, found)
        if sample.refused and "done" in found.outcomes.values():
            done = [name for name, outcome in found.outcomes.items() if outcome == "done"]
            found.violations.append(f"it must be refused, and was not by {', '.join(done)}")
        path.unlink()
        return found

    # --- what is tried ------------------------------------------------------------------------------------------

    def _checkpoint(self, path):
        out = self.out / f"out{path.suffix if path.suffix in ('.pt', '.safetensors') else '.pt'}"
        size = ("--input-size", "16")
        yield "read", lambda: read(path)
        yield "load", lambda: hotswap.load(path, networks.Plain())
        yield "load without a network", lambda: hotswap.load(path)
        yield "verify", self._cli("verify", path, "--model", NET, *size, "--json")
        convert = ("convert", NET, "--weights", path, "--target", "target", "--guide", "guide", *size)
        yield "convert", self._cli(*convert, "-o", out, out=out)
        photos = ("--images", self.work / "photos")
        yield "calibrate", self._cli("calibrate", path, "--model", NET, *photos, *size, "-o", out, out=out)
        yield "revert", self._cli("revert", path, "-o", out, out=out)
        yield "diff", self._cli("diff", path, self.good)

    def _plan(self, path):
        out = self.out / "out.safetensors"
        yield "read_plan", lambda: read_plan(path)
        yield "plan", self._cli("plan", NET, "--plan", path, "--input-size", "16")
        convert = ("convert", NET, "--weights", self.weights, "--plan", path, "--input-size", "16")
        yield "convert", self._cli(*convert, "-o", out, out=out)

    def _recipe(self, path):
        yield "reading", lambda: reading.read(path)
        # A recipe is its owner's and may name code of theirs, so one that can be read is not carried out here.
        try:
            reading.read(path)
        except Exception:  # noqa: BLE001 (the attempt before has told)
            yield "finetune", self._cli("finetune", path, "--output-dir", self.out / "run", "--quiet")

    def _image(self, path):
        yield "images.read", lambda: images.read(path)
        yield "verify", self._cli("verify", self.good, "--model", NET, "--images", path.parent, "--input-size", "16")

    def _state(self, path):
        yield "checkpointing.read", lambda: checkpointing.read(path)

    def _cli(self, *arguments, out=None):
        return lambda: self._run([str(a) for a in arguments], out)

    def _run(self, arguments, out):
        """A command; "refused" if it ended with 1 or 2 and said why."""
        if out is not None:
            out.write_bytes(_OLD)
        done = CliRunner().invoke(main, arguments)
        error = done.exception
        if error is not None and not isinstance(error, SystemExit):
            raise error
        told = _told(done)
        if done.exit_code == 0:
            if told:
                raise AssertionError(f"said on stderr: {told[0][:200]}")
            if out is not None:
                read(out)  # whole
            return
        check_refusal(done)
        if out is not None and out.read_bytes() != _OLD:
            raise AssertionError("it failed, and has overwritten what was there")
        raise HotswapError("refused")

    # --- what must be true --------------------------------------------------------------------------------------

    def _try(self, name, attempt, path, content, found):
        def wrong(what):
            found.violations.append(f"{name}: {what}")

        limit = 2 * len(content) + 2**30
        here = Path.cwd()
        os.chdir(self.out)
        with (
            _measured(limit) as cost,
            traps.watched(self.work) as events,
            warnings.catch_warnings(record=True) as told,
        ):
            warnings.simplefilter("always", UserWarning)
            try:
                attempt()
                found.outcomes[name] = "done"
            except HotswapError as error:
                found.outcomes[name] = "refused"
                text = str(error)
                if "\n" in text or len(text) > LONGEST or not text:
                    wrong(f"not one short line, {len(text)} letters: {text[:300]!r}")
            except TooSlowError:
                wrong(f"not done after {SECONDS} s")
            except BaseException as error:  # noqa: BLE001 (whatever it is, it is the finding)
                wrong(f"{type(error).__name__}: {str(error)[:300]} ({_where(error)})")
        os.chdir(here)
        found.peak = max(found.peak, cost.peak)
        found.seconds += cost.seconds
        if cost.peak > limit:
            wrong(f"{cost.peak / 2**20:.0f} MiB of memory for a file of {len(content) / 2**20:.1f} MiB")
        if events:
            wrong(f"it did {events[0]}")
        if left := traps.sprung(self.trap):
            wrong(f"code ran: {left}")
        if told:
            wrong(f"warned: {told[0].category.__name__} {str(told[0].message)[:200]}")
        if path.read_bytes() != content:
            wrong("it changed the file")
        for extra in self.out.rglob("*"):
            if extra.name not in ("out.pt", "out.safetensors"):
                wrong(f"it left {extra.name}")
                extra.rmdir() if extra.is_dir() else extra.unlink()


def check_refusal(done):
    """Of a command that failed: that it says so, in one line, and nothing else."""
    told = _told(done)
    if done.exit_code not in (1, 2):
        raise AssertionError(f"exit code {done.exit_code}")
    if done.stdout:
        raise AssertionError(f"it failed, and printed {done.stdout[:200]!r}")
    if done.exit_code == 1 and (len(told) != 1 or not told[0].startswith("Error: ")):
        raise AssertionError(f"not one clear line: {told[:3]!r:.400}")
    if not all(c.isprintable() or c == "\n" for c in done.stderr):
        raise AssertionError(f"what it said would steer a terminal: {done.stderr[:200]!r}")


def _told(done):
    return [line for line in done.stderr.splitlines() if not line.startswith(("note: ", "wrote "))]


def _where(error):
    last = error.__traceback__
    frames = []
    while last is not None:
        frames.append(f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}")
        last = last.tb_next
    return " ".join(frames[-4:])


class _Cost:
    peak, seconds = 0, 0.0


@contextmanager
def _measured(limit):
    """The memory that is used at most, beyond what was used before; and a stop to what would never end."""
    import time

    cost = _Cost()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    guard = _status("VmSize") + max(_OUT_OF_MEMORY, limit)
    old_limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (guard, old_limit[1]))
    old_handler = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    began = time.perf_counter()
    try:
        yield cost
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old_handler)
        resource.setrlimit(resource.RLIMIT_AS, old_limit)
        cost.seconds = time.perf_counter() - began
        cost.peak = max(0, _status("VmHWM") - before)


def too_slow(*_):
    """What an alarm calls."""
    raise TooSlowError


def _status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


if not sys.platform.startswith("linux"):
    raise ImportError("the attacks measure memory as Linux tells it")
