"""Some of the places in which commands are attacked; `python -m tools.attack places` tries every command in all."""

import os
import tempfile
from pathlib import Path

import attempts
import places
import pytest
from click.testing import CliRunner
from conditions import NotHereError
from ground import Ground

from recipes.__main__ import main


@pytest.fixture(scope="module")
def ground():
    with tempfile.TemporaryDirectory() as work:  # pytest's own folders may be entered by nobody else
        Path(work).chmod(0o755)
        made = Ground(work)
        for command in ("revert", "revert to .pt", "revert in parts", "convert"):
            assert made.attack(command, "new") == []
        assert made.attack_by_input("diff", "read through a link") == []
        yield made


def tried(attack, *names):
    try:
        return attack(*names)
    except NotHereError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("place", places.OUTPUTS)
@pytest.mark.parametrize("command", ["revert", "revert to .pt", "revert in parts"])
def test_writing(ground, command, place):
    assert tried(ground.attack, command, place) == []


@pytest.mark.parametrize("place", places.INPUTS)
def test_reading(ground, place):
    assert tried(ground.attack_by_input, "diff", place) == []


def test_folders_of_images(ground, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "odd" / "c.png").mkdir(parents=True)
    os.mkfifo(tmp_path / "odd" / "a.png")
    (tmp_path / "odd" / "b.png").symlink_to("/dev/zero")
    (tmp_path / "odd" / "d.png").symlink_to("d.png")
    for name in ("pipe", "dangling", "loop", "odd", "missing", "/dev/zero", "x" * 300):
        words = ("verify", ground.good, "--model", attempts.NET, "--input-size", "16", "--images", tmp_path / name)
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert isinstance(done.exception, SystemExit)
        attempts.check_refusal(done)


EARLY = ("link to a file", "read only disk", "a folder")


@pytest.mark.parametrize("place", EARLY)
@pytest.mark.parametrize("command", ["convert", "calibrate", "report", "export", "export a program", "finetune"])
def test_every_command_is_refused_before_its_work(ground, command, place):
    assert tried(ground.attack, command, place) == []


# --- the attacks can fail ---------------------------------------------------------------------------------------


def test_what_must_not_happen_is_noticed(ground, monkeypatch):
    for module in ("hotswap.files.atomic", "hotswap.files.destinations"):
        monkeypatch.setattr(f"{module}.check_writable", lambda path: Path(path).resolve())
    assert "it must be refused, and was not" in ground.attack("revert", "link to a file")
    assert any("theirs-out.safetensors" in text for text in ground.attack("revert", "link to a file"))
    monkeypatch.setattr("hotswap.cli.output.say", lambda text: 1 / 0)
    assert ground.attack("revert", "new") == ["ZeroDivisionError: division by zero"]
