import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hotswap.errors import HotswapError
from hotswap.files.atomic import atomic_write, check_readable, check_writable, is_same_file


def write(path, text="new"):
    with atomic_write(path) as temporary:
        temporary.write_text(text)


@pytest.fixture
def old(tmp_path):
    """A file that is there already, alone in its folder."""
    path = tmp_path / "out" / "file"
    path.parent.mkdir()
    path.write_text("old")
    return path


def test_writes_a_new_file_and_replaces_an_old_one(old):
    write(old)
    write(old.with_name("other"), "x")
    assert (old.read_text(), old.with_name("other").read_text()) == ("new", "x")
    assert sorted(p.name for p in old.parent.iterdir()) == ["file", "other"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_the_umask_whatever_the_writer_does(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.unlink()  # as safetensors does: it puts a file of its own there
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), HotswapError("x")])
def test_a_writer_that_stops_leaves_the_old_file_and_nothing_else(old, error):
    def stop(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)), atomic_write(old) as temporary:
        stop(temporary)
    assert [p.read_text() for p in old.parent.iterdir()] == ["old"]


def test_a_full_disk_is_one_line(old):
    with pytest.raises(HotswapError, match=r"cannot write '.*file': No space left on device"), atomic_write(old):
        raise OSError(28, "No space left on device")
    assert [p.read_text() for p in old.parent.iterdir()] == ["old"]


@pytest.mark.parametrize("leads", ["out/file", "nowhere", "link", "out", "/dev/null"])
def test_a_link_is_refused_whatever_it_leads_to(old, tmp_path, leads):
    link = tmp_path / "link"
    link.symlink_to(leads)
    for attempt in (check_writable, write):
        with pytest.raises(HotswapError, match=f"it is a link to '{leads}'; name that file itself, or remove"):
            attempt(link)
    assert link.readlink() == Path(leads)
    assert old.read_text() == "old"


def test_a_link_that_comes_while_writing_is_replaced_and_not_followed(old, tmp_path):
    link = tmp_path / "link"
    with atomic_write(link) as temporary:
        link.symlink_to(old)
        temporary.write_text("new")
    assert (old.read_text(), link.read_text(), link.is_symlink()) == ("old", "new", False)


def test_of_hard_links_one_name_gets_the_new_content(old, tmp_path):
    (tmp_path / "hard").hardlink_to(old)
    write(tmp_path / "hard")
    assert (old.read_text(), (tmp_path / "hard").read_text()) == ("old", "new")


def test_a_linked_folder_is_followed(old, tmp_path):
    (tmp_path / "linked").symlink_to("out")
    write(tmp_path / "linked" / "file")
    assert old.read_text() == "new"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/file", "there is no folder '.*missing'; create it first"),
        ("out/file/file", "is not a folder"),
        ("out", "it is a folder; name a file in it"),
        ("pipe", "it is a device or a pipe"),
        ("x" * 300, "File name too long"),
        ("\udcff.pt", "its name is no text in UTF-8; rename it"),
    ],
)
def test_refuses_what_cannot_be_written(old, tmp_path, path, reason):
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    for attempt in (check_writable, write):
        with pytest.raises(HotswapError, match=f"cannot write .*{reason}") as caught:
            attempt(tmp_path / path)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_device_is_not_replaced():
    with pytest.raises(HotswapError, match="device"):
        write("/dev/null")
    assert not Path("/dev/null").is_file()


WRITER = """
import sys
from hotswap.files.atomic import atomic_write
sizes = [100_000, 300_000]
for round in range(10**6):
    with atomic_write(sys.argv[1]) as temporary:
        size = sizes[round % 2]
        with temporary.open("wb") as stream:
            for start in range(0, size, 10_000):
                stream.write(bytes([round % 2]) * 10_000)
    if round == 0:
        print("started", flush=True)
"""


def test_kill_9_leaves_a_whole_file(tmp_path):
    target = tmp_path / "file"
    for delay in (0, 0.003, 0.011, 0.02, 0.035, 0.05):
        # Not through hotswap's own package, which would import torch for seconds.
        code = "import sys, types; p = types.ModuleType('hotswap'); p.__path__ = [sys.argv[2]]; "
        code += f"sys.modules['hotswap'] = p\n{WRITER}"
        package = str(Path(__file__).parents[3] / "hotswap")
        with subprocess.Popen([sys.executable, "-c", code, target, package], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
        content = target.read_bytes()
        assert content in (bytes([0]) * 100_000, bytes([1]) * 300_000)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file"),
        ("folder", "it is a folder"),
        ("empty", "the file is empty"),
        ("pipe", "device or a pipe"),
        ("x" * 300, "File name too long"),
        ("\udcff.pt", "its name is no text in UTF-8; rename it"),
    ],
)
def test_check_readable(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HotswapError, match=f"cannot read .*{reason}"):
        check_readable(tmp_path / name)


def test_is_same_file(old, tmp_path):
    (tmp_path / "soft").symlink_to(old)
    (tmp_path / "hard").hardlink_to(old)
    (tmp_path / "copy").write_text("old")
    assert all(is_same_file(old, tmp_path / name) for name in ("soft", "hard", "out/../out/file"))
    assert not is_same_file(old, tmp_path / "copy")
    assert is_same_file(tmp_path / "not/there", tmp_path / "not/../not/there")
    assert not is_same_file(old, tmp_path / "missing")
