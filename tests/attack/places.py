"""Places to write to and to read from as other people, shells and disks leave them."""

import os
import resource
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conditions import as_somebody, immutable, mounted, permissions, system

OLD = b"what was there before"


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
        system("mount", "-o", "remount,ro", folder)
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
