"""`hotswap search`, from folders to a file."""

import json
from pathlib import Path

import blobs
import pytest
from command_line import error_of, run

import hotswap

NET, FORM = "blobs:Coarse", ("--mean", "0", "--std", "1")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blobs.save(tmp_path)
    return tmp_path


def test_it_writes_the_swapped_network_and_says_so(folders):
    done = run("search", NET, "--images", "photos", "--labels", "labels", *FORM, "-o", "best.pt")
    assert done.stdout.splitlines()[-1].startswith("Swap this: resize_1 ")
    assert "wrote best.pt" in done.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["best.html", "best.pt", "labels", "photos"]
    best = hotswap.load("best.pt", model=blobs.Coarse())
    again = json.loads(
        run("search", NET, "--images", "photos", "--labels", "labels", *FORM, "-o", "best.pt", "--json").stdout
    )
    assert again["swap"] is True
    assert [entry.guide_scale for entry in hotswap.status(best).plan.entries] == again["chosen"]["scales"]


def test_no_label_is_one_line(folders):
    Path("empty").mkdir()
    words = ("search", NET, "--images", "photos", "--labels", "empty", "-o", "best.pt")
    assert "there is no label in 'empty'" in error_of(run(*words, code=1))
