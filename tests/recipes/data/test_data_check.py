"""`hotswap data check`: what it counts, what it finds, and how it exits."""

import json

import pytest
from click.testing import CliRunner
from tiny_datasets import LISTS, nyu, sintel, voc

from hotswap.cli import main
from hotswap.errors import HotswapError
from recipes.data import check as checking
from recipes.data import command
from recipes.data.check import KINDS, check

SCENES = {"ambush_6": 2, "market_6": 1, "bamboo_2": 1, "cave_4": 1, "temple_2": 1, "alley_1": 2}


@pytest.fixture
def small(monkeypatch):
    """Whole data sets are as large as the tiny ones."""
    for name, sizes in (("voc", (6, 2)), ("sintel", (2, 6))):
        monkeypatch.setattr(KINDS[name], "sizes", dict(zip(KINDS[name].sizes, sizes, strict=True)))


def run(*arguments):
    done = CliRunner().invoke(main, ["data", "check", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_sizes_are_the_issues():
    assert {name: kind.sizes for name, kind in KINDS.items()} == {
        "voc": {"train11": 8825, "val11_sbd": 736},
        "nyu": {"train": 1000, "test": 449},
        "sintel": {"train": 908, "validation": 133},
    }
    assert tuple(KINDS) == command.NAMES


@pytest.mark.parametrize(
    ("name", "make"),
    [("voc", lambda root: voc(root, LISTS)), ("nyu", nyu), ("sintel", lambda root: sintel(root, (6, 8), SCENES))],
)
def test_a_whole_data_set_is_all_right(tmp_path, small, name, make):
    code, stdout, stderr = run(name, make(tmp_path))
    assert (code, stderr) == (0, "")
    assert "everything is there" in stdout
    for split, count in KINDS[name].sizes.items():
        assert f"  {split}: {count} of {count} items" in stdout


def test_missing_and_damaged_files_are_all_listed(tmp_path, small):
    root = voc(tmp_path, LISTS)
    (root / "sbd" / "cls" / "2010_g.mat").write_bytes(b"nothing")
    (root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2010_f.jpg").unlink()
    code, stdout, stderr = run("voc", root)
    assert code == 1
    assert stderr.startswith("Error: 2 problems in voc, the first: ")
    assert "2010_" in stderr
    assert run("voc", root, "--quiet") == (1, "", stderr)
    assert "train11: 5 of 6 items" in stdout
    assert "2010_g.mat' cannot be read (" in stdout
    assert "2010_f.jpg' is missing; get" in stdout
    assert stdout.endswith("2 problems\n")
    code, stdout, _ = run("voc", root, "--json")
    found = json.loads(stdout)
    assert (code, len(found["problems"])) == (1, 2)
    assert found["splits"][1] == {"name": "val11_sbd", "expected": 2, "found": 1}


def test_too_few_items_are_a_problem(tmp_path):
    report = check("sintel", sintel(tmp_path, (6, 8), SCENES))
    assert report.problems == (
        "sintel train must list 908 items, got 2",
        "sintel validation must list 133 items, got 6",
    )


def test_a_file_that_all_need_is_one_problem(tmp_path):
    report = check("nyu", tmp_path)
    assert len(report.problems) == 1
    assert [split.found for split in report.splits] == [0, 0]


def test_many_problems_are_cut_short_for_people_only(tmp_path):
    report = checking.Report("voc", ".", (), tuple(f"file {n}" for n in range(30)))
    assert "file 19\nand 10 more; --json lists all\n30 problems" in str(report)
    assert len(report.to_dict()["problems"]) == 30


def test_progress_sees_every_item(tmp_path):
    seen = []

    def progress(items, total, what):
        seen.append((total, what))
        return items

    check("sintel", sintel(tmp_path, (6, 8), SCENES), progress)
    assert seen == [(2, "sintel train"), (6, "sintel validation")]


def test_an_unknown_name_is_refused():
    with pytest.raises(HotswapError, match="data set must be one of voc, nyu, sintel, got 'coco'"):
        check("coco", ".")
    code, _, stderr = run("coco", ".")
    assert code == 2
    assert "'coco' is not one of 'voc', 'nyu', 'sintel'" in stderr


def test_is_found_by_the_command_line():
    assert "check" in CliRunner().invoke(main, ["data", "--help"]).stdout
    assert "  data " in CliRunner().invoke(main, ["--help"]).stdout
