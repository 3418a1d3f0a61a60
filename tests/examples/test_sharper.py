"""The demo's first minute: what a guided enlargement gains."""

import pytest
from PIL import Image
from rich.console import Console

from examples import sharper


def shown(tmp_path, capsys):
    *_, path = sharper.show_gain(tmp_path, Console(width=300))
    with Image.open(path) as image:
        assert image.width > 1200
        assert image.height > 1200
    return capsys.readouterr().out


def gain(text):
    return float(text.split(" points)")[0].rpartition("(")[2])


def test_real_photographs_gain_much(tmp_path, capsys):
    if not sharper.found_beside():
        pytest.skip(f"{sharper.SHARED} has no network and photographs, or onnx2torch is not installed")
    text = shown(tmp_path, capsys)
    assert "24 photographs of horses with masks drawn by hand" in text
    assert gain(text) > 3


def test_elsewhere_a_stand_in_says_that_it_is_one_and_gains_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sharper, "SHARED", tmp_path / "nowhere")
    for name, less in (("STEPS", 40), ("SCENES", 48), ("COUNT", 8)):
        monkeypatch.setattr(sharper, name, less)
    text = shown(tmp_path, capsys)
    assert "A stand-in for a real network" in text
    assert "procedural" in text
    assert gain(text) > 0.5
