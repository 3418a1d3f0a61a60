"""Places to write to and to read from as other people, shells and disks leave them, and commands that meet them."""

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import attempts
import networks
import runs
import torch
import traps
from click.testing import CliRunner
from PIL import Image

import hotswap
from hotswap import checkpoint
from recipes import tensorboard
from recipes.__main__ import main

OLD = b"what was there before"
NOBODY = 65534
_ELSEWHERE = ("open ", "os.re", "os.mk", "os.rm")  # events of files, among all that traps hear
_CACHE = "torchinductor"  # torch's own
SECONDS = 120  # that a command may take: reading a pipe that nobody writes to takes for ever


class NotHereError(Exception):
    """What a place needs is not to be had on this machine, with the reason."""


@dataclass(frozen=True)
class Place:
    """A path for a command, and whether it must be refused."""

    path: Path
    refused: bool = True


# --- where to write ---------------------------------------------------------------------------------------------
# Each is given an empty folder and the name of a file.


def _old(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(OLD)
    return path


@contextmanager
def new(folder, name):
    yield Place(folder / name, refused=False)


@contextmanager
def old(folder, name):
    yield Place(_old(folder / name), refused=False)


@contextmanager
def link_to_a_file(folder, name):
    (folder / name).symlink_to(_old(folder / "elsewhere" / f"theirs-{name}"))
    yield Place(folder / name)


@contextmanager
def link_to_a_link(folder, name):
    (folder / "second").symlink_to(_old(folder / "elsewhere" / name))
    (folder / name).symlink_to("second")
    yield Place(folder / name)


@contextmanager
def dangling_link(folder, name):
    (folder / "elsewhere").mkdir()
    (folder / name).symlink_to(folder / "elsewhere" / "not-there")
    yield Place(folder / name)


@contextmanager
def link_to_itself(folder, name):
    (folder / name).symlink_to(name)
    yield Place(folder / name)


@contextmanager
def link_to_a_folder(folder, name):
    _old(folder / "elsewhere" / "file")
    (folder / name).symlink_to("elsewhere")
    yield Place(folder / name)


@contextmanager
def link_to_a_device(folder, name):
    (folder / name).symlink_to("/dev/null")
    yield Place(folder / name)


@contextmanager
def hard_link(folder, name):
    (folder / name).hardlink_to(_old(folder / "elsewhere" / f"theirs-{name}"))
    yield Place(folder / name, refused=False)


@contextmanager
def in_a_linked_folder(folder, name):
    (folder / "real").mkdir()
    (folder / "linked").symlink_to("real")
    yield Place(folder / "linked" / name, refused=False)


@contextmanager
def in_a_looped_folder(folder, name):
    (folder / "loop").symlink_to("loop")
    yield Place(folder / "loop" / name)


@contextmanager
def below_a_file(folder, name):
    yield Place(_old(folder / "file") / name)


@contextmanager
def a_folder(folder, name):
    _old(folder / name / "inside")
    yield Place(folder / name)


@contextmanager
def a_pipe(folder, name):
    os.mkfifo(folder / name)
    yield Place(folder / name)


@contextmanager
def read_only_folder(folder, name):
    _old(folder / name)
    folder.chmod(0o555)
    with as_somebody():
        yield Place(folder / name)


@contextmanager
def read_only_file(folder, name):
    _old(folder / name).chmod(0o444)
    folder.chmod(0o777)
    with as_somebody():
        yield Place(folder / name)


@contextmanager
def folder_that_nobody_may_enter(folder, name):
    _old(folder / "closed" / name)
    with permissions(folder / "closed", 0o000), as_somebody():
        yield Place(folder / "closed" / name)


@contextmanager
def immutable_file(folder, name):
    with immutable(_old(folder / name)):
        yield Place(folder / name)


@contextmanager
def immutable_folder(folder, name):
    _old(folder / name)
    with immutable(folder):
        yield Place(folder / name)


@contextmanager
def read_only_disk(folder, name):
    with mounted(folder, "size=1m"):
        _old(folder / name)
        _system("mount", "-o", "remount,ro", folder)
        yield Place(folder / name)


@contextmanager
def full_disk(folder, name):
    with mounted(folder, "size=64k"):
        _old(folder / name)
        (folder / "filler").write_bytes(bytes(56 << 10))
        yield Place(folder / name)


@contextmanager
def disk_without_any_room(folder, name):
    with mounted(folder, "size=64k,nr_inodes=3"):
        _old(folder / name)
        (folder / "filler").touch()
        yield Place(folder / name)


def limited(size):
    """A disk on which no file can have more than so many bytes."""

    @contextmanager
    def limited(folder, name):
        _old(folder / name)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield Place(folder / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


NAMES = {
    "spaces": " a  b ",
    "unicode": "ä日本語🙂e\u0301\u202e",
    "a new line": "a\nb",
    "control characters": "a\tb\x1b[2J\x7f",
    "quotes and words of a shell": "'\"$(touch x);&|*?%s{0}",
    "as long as names can be": "x" * 200,
}


NO_TEXT = os.fsdecode(b"\xff\xfe\x80")


def named(text):
    @contextmanager
    def named(folder, name):
        (folder / text).mkdir()
        yield Place(folder / text / f"{text[:40]}{name}", refused=False)

    return named


@contextmanager
def in_a_folder_whose_name_is_no_text(folder, name):
    (folder / NO_TEXT).mkdir()
    yield Place(folder / NO_TEXT / name)


@contextmanager
def too_long_a_name(folder, name):
    yield Place(folder / ("x" * 300) / name)


@contextmanager
def too_long_a_path(folder, name):
    yield Place(folder / "/".join(["x" * 200] * 30) / name)


OUTPUTS = {
    function.__name__.replace("_", " "): function
    for function in (
        *(new, old, link_to_a_file, link_to_a_link, dangling_link, link_to_itself, link_to_a_folder),
        *(link_to_a_device, hard_link, in_a_linked_folder, in_a_looped_folder, below_a_file, a_folder, a_pipe),
        *(read_only_folder, read_only_file, folder_that_nobody_may_enter, immutable_file, immutable_folder),
        *(read_only_disk, full_disk, disk_without_any_room, too_long_a_name, too_long_a_path),
        in_a_folder_whose_name_is_no_text,
    )
}
OUTPUTS |= {f"a disk of {size} bytes": limited(size) for size in (0, 50, 900)}
OUTPUTS |= {f"named with {what}": named(text) for what, text in NAMES.items()}


# --- where to read from -----------------------------------------------------------------------------------------
# Each is given an empty folder and a good file.


@contextmanager
def missing(folder, good):
    yield Place(folder / good.name)


@contextmanager
def read_through_a_link(folder, good):
    (folder / good.name).symlink_to(good)
    yield Place(folder / good.name, refused=False)


@contextmanager
def read_through_a_dangling_link(folder, good):
    (folder / good.name).symlink_to("not-there")
    yield Place(folder / good.name)


@contextmanager
def read_through_a_loop(folder, good):
    (folder / good.name).symlink_to(good.name)
    yield Place(folder / good.name)


@contextmanager
def read_a_folder(folder, good):
    (folder / good.name).mkdir()
    yield Place(folder / good.name)


@contextmanager
def read_a_pipe(folder, good):
    os.mkfifo(folder / good.name)
    yield Place(folder / good.name)


@contextmanager
def read_what_is_closed(folder, good):
    path = _copy(good, folder / good.name)
    with permissions(path, 0o000), as_somebody():
        yield Place(path)


@contextmanager
def read_in_a_closed_folder(folder, good):
    (folder / "closed").mkdir()
    path = _copy(good, folder / "closed" / good.name)
    with permissions(folder / "closed", 0o000), as_somebody():
        yield Place(path)


@contextmanager
def read_too_long_a_name(folder, good):
    yield Place(folder / f"{'x' * 300}{good.name}")


@contextmanager
def read_a_name_that_is_no_text(folder, good):
    yield Place(_copy(good, folder / f"{NO_TEXT}{good.name}"))


@contextmanager
def read_below_a_file(folder, good):
    yield Place(good / good.name)


def device(path):
    @contextmanager
    def device(folder, good):
        yield Place(Path(path))

    return device


def copied_to(text):
    @contextmanager
    def copied_to(folder, good):
        (folder / text).mkdir()
        yield Place(_copy(good, folder / text / f"{text[:40]}{good.name}"), refused=False)

    return copied_to


INPUTS = {
    function.__name__.replace("_", " "): function
    for function in (
        *(
            missing,
            read_through_a_link,
            read_through_a_dangling_link,
            read_through_a_loop,
            read_a_folder,
            read_a_pipe,
        ),
        *(read_what_is_closed, read_in_a_closed_folder, read_too_long_a_name, read_below_a_file),
        read_a_name_that_is_no_text,
    )
}
INPUTS |= {f"read {path}": device(path) for path in ("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem")}
INPUTS |= {f"read, named with {what}": copied_to(text) for what, text in NAMES.items()}


def _copy(good, path):
    path.write_bytes(good.read_bytes())
    return path


# --- what they need ---------------------------------------------------------------------------------------------


@contextmanager
def as_somebody():
    """As a user whom permissions hold back, as they do not hold root."""
    if os.getuid() != 0:
        yield
        return
    try:
        os.setresuid(NOBODY, NOBODY, 0)
    except PermissionError as error:
        raise NotHereError("root may not become anybody else here") from error
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@contextmanager
def permissions(path, mode):
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(0o700)


@contextmanager
def immutable(path):
    """Which holds root back too."""
    _system("chattr", "+i", path)
    try:
        yield
    finally:
        _system("chattr", "-i", path)


@contextmanager
def mounted(folder, options):
    """A disk of its own there, in memory."""
    _system("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield
    finally:
        _system("umount", folder)


def _system(*words):
    try:
        done = subprocess.run([os.fspath(word) for word in words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotHereError(f"there is no {words[0]}") from error
    if done.returncode != 0:
        raise NotHereError(f"{words[0]}: {done.stderr.strip()}")


# --- commands ---------------------------------------------------------------------------------------------------


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
        self.recipe = runs.written(self.work, swaps=swaps, steps=1, evaluation={"every": 1})
        self.small = self.work / "small.safetensors"
        hotswap.save(runs.Small(), self.small)
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
        checkpoint.read(path)
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


def run():
    """Every command in every place; what came of it, and what was wrong."""
    outcomes, skipped, violations = {}, {}, []
    with tempfile.TemporaryDirectory() as work:
        Path(work).chmod(0o755)
        ground = Ground(work)
        attacks = [
            (attack, places, command, place)
            for attack, commands, places in (
                (ground.attack, ground.writing, OUTPUTS),
                (ground.attack_by_input, ground.reading, INPUTS),
            )
            for command in commands
            for place in places
        ]
        for attack, places, command, place in attacks:
            try:
                wrong = attack(command, place)
            except NotHereError as error:
                skipped[place] = str(error)
                continue
            except Exception as error:  # noqa: BLE001 (whatever it is, it is the finding)
                wrong = [f"{type(error).__name__}: {error}"]
            kind = f"{command}, {'reading' if places is INPUTS else 'writing'}"
            outcomes[kind] = outcomes.get(kind, 0) + 1
            violations += [f"{command}, {place}: {text}" for text in wrong]
            print(f"{command}, {place}: {wrong or 'as it should be'}", file=sys.stderr, flush=True)
    return {"attacks": outcomes, "skipped": skipped, "violations": violations}
