"""What comments, docstrings and docs refer to is there: files by their paths, modules by their dotted names."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pac_ops", "hotswap", "recipes", "examples", "benchmarks", "tools", "tests", "docs")
PAGES = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
CODE = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
FILE = re.compile(rf"(?<![\w/.-])(?:[A-Z]{{4,}}\.md|(?:{'|'.join(FOLDERS)})/[\w/.-]+\.(?:py|md|yaml|csv|json))\b")
MODULE = re.compile(r"\b(?:pac_ops|hotswap)(?:\.[a-z_]\w*)+")
MADE_UP = {"benchmarks/results/x.csv"}  # by tests/test_tools.py
NO_MODULES = {
    "hotswap.commands",
    "hotswap.guides",
    "hotswap.quiet",
}  # entry points; keys of what torch and click keep


def test_files_that_are_referred_to_are_there():
    cited = {(path, match[0]) for path in [*PAGES, *CODE] for match in FILE.finditer(path.read_text())}
    missing = {(path, name) for path, name in cited if not ((ROOT / name).exists() or (path.parent / name).exists())}
    assert len(cited) > 30
    assert {name for _, name in missing} <= MADE_UP, missing


def resolves(name):
    """Whether it is a module, or something in one."""
    try:
        importlib.import_module(name)
    except ImportError:
        above, _, attribute = name.rpartition(".")
        return bool(above) and resolves(above) and hasattr(importlib.import_module(above), attribute)
    return True


@pytest.mark.parametrize("package", ["hotswap", "pac_ops", "recipes"])
def test_modules_that_are_referred_to_are_there(package):
    files = [*PAGES, *(path for path in CODE if path.is_relative_to(ROOT / package))]
    cited = {match[0] for path in files for match in MODULE.finditer(path.read_text())}
    assert len(cited) > 10
    assert not {name for name in cited - NO_MODULES if not resolves(name)}


@pytest.mark.parametrize("package", ["hotswap", "pac_ops", "recipes"])
def test_the_map_has_every_room(package):
    section = (ROOT / "docs" / "architecture.md").read_text().partition(f"\n## {package}\n")[2].partition("\n## ")[0]
    named = {name.split(".")[0].rstrip("/") for name in re.findall(r"`([\w./]+)`", section)}
    rooms = {
        path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert not {room for room in rooms if not room.startswith("_")} - named
