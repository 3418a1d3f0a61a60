"""Some of the places in which commands are attacked; `python -m tests.attack places` tries every command in all."""

import tempfile
from pathlib import Path

import places
import pytest


@pytest.fixture(scope="module")
def ground():
    with tempfile.TemporaryDirectory() as work:  # pytest's own folders may be entered by nobody else
        Path(work).chmod(0o755)
        made = places.Ground(work)
        for command in ("revert", "revert to .pt", "revert in parts", "convert"):
            assert made.attack(command, "new") == []
        assert made.attack_by_input("diff", "read through a link") == []
        yield made


def tried(attack, *names):
    try:
        return attack(*names)
    except places.NotHereError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("place", places.OUTPUTS)
@pytest.mark.parametrize("command", ["revert", "revert to .pt", "revert in parts"])
def test_writing(ground, command, place):
    assert tried(ground.attack, command, place) == []


@pytest.mark.parametrize("place", places.INPUTS)
def test_reading(ground, place):
    assert tried(ground.attack_by_input, "diff", place) == []


EARLY = ("link to a file", "read only disk", "a folder")


@pytest.mark.parametrize("place", EARLY)
@pytest.mark.parametrize("command", ["convert", "calibrate", "report", "export", "export a program", "finetune"])
def test_every_command_is_refused_before_its_work(ground, command, place):
    assert tried(ground.attack, command, place) == []


# --- the attacks can fail ---------------------------------------------------------------------------------------


def test_what_must_not_happen_is_noticed(ground, monkeypatch):
    for module in ("hotswap.files", "hotswap.checkpoint"):
        monkeypatch.setattr(f"{module}.check_writable", lambda path: Path(path).resolve())
    assert "it must be refused, and was not" in ground.attack("revert", "link to a file")
    assert any("theirs-out.safetensors" in text for text in ground.attack("revert", "link to a file"))
    monkeypatch.setattr("hotswap.cli.checkpoints._Reverted", lambda targets: 1 / 0)
    assert ground.attack("revert", "new") == ["ZeroDivisionError: division by zero"]
