"""The rules of the house: who may import whom, what a file may hold, and what an import may cost."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["pac_ops", "hotswap", "recipes"]  # each may import itself and those before it
EVERYTHING_ELSE = ["benchmarks", "examples", "tests"]  # nothing may import these


def imports(path):
    """Top-level names of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_down_only(layer):
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    above = [*LAYERS[LAYERS.index(layer) + 1 :], *EVERYTHING_ELSE]
    wrong = {(str(f.relative_to(ROOT)), name) for f in files for name in imports(f) if name in above}
    assert not wrong


def test_pac_ops_depends_on_torch_alone():
    allowed = {"torch", "pac_ops", *sys.stdlib_module_names}
    files = (ROOT / "pac_ops").rglob("*.py")
    wrong = {(f, name) for f in files for name in imports(f) if name not in allowed}
    assert not {(f.name, name) for f, name in wrong if (f.parent.name, name) != ("triton", "triton")}


def test_no_fast_path_imports_the_oracle():
    oracle = "pac_ops.backends.reference"
    for path in {*(ROOT / "pac_ops").rglob("*.py")} - {
        ROOT / "pac_ops" / "standard.py"
    }:  # which writes it into files
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            else:
                continue
            assert oracle not in imported, path


# --- rooms ------------------------------------------------------------------------------------------------------

MOST_LINES = 400


def modules(package):
    """Every module of a package by its dotted name, but for `__init__` at its top, which is the face of all rooms."""
    named = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if len(parts) > 2 or parts[-1] != "__init__":
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def names_imported(path):
    """Module and name of every `from module import name` in a file, and of every `import module.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.rpartition(".")[::2] for alias in node.names if "." in alias.name)


def arrows(package):
    """Which modules of its package each module imports."""
    known = modules(package)
    return {
        importer: {
            target
            for module, name in names_imported(path)
            for target in [f"{module}.{name}" if f"{module}.{name}" in known else module]
            if target in known and target != importer
        }
        for importer, path in known.items()
    }


def room(module):
    """The folder or file at the top of a package that a module is in, or is."""
    return module.split(".")[1]


@pytest.mark.parametrize("package", LAYERS)
def test_no_circle_of_imports(package):
    graphlib.TopologicalSorter(arrows(package)).prepare()


def test_no_circle_between_rooms():
    between = {}
    for importer, imported in arrows("hotswap").items():
        rooms = {room(module) for module in imported} - {room(importer)}
        between.setdefault(room(importer), set()).update(rooms)
    assert {"network", "targets", "surgery", "measure", "files", "zoo", "checkpoint", "cli"} <= between.keys()
    graphlib.TopologicalSorter(between).prepare()


@pytest.mark.parametrize("package", LAYERS)
def test_files_are_short(package):
    lines = {name: len(path.read_text().splitlines()) for name, path in modules(package).items()}
    assert not {name for name, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize("package", LAYERS)
def test_what_is_private_to_a_module_stays_there(package):
    wrong = []
    for importer, path in modules(package).items():
        own = [(module, name) for module, name in names_imported(path) if module.split(".")[0] in LAYERS]
        wrong += [(importer, name) for _, name in own if name.startswith("_") and not name.startswith("__")]
        imported = {name for _, name in own}
        wrong += [
            (importer, f"{node.value.id}.{node.attr}")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported
            if node.attr.startswith("_") and not node.attr.startswith("__")
        ]
    assert not wrong


@pytest.mark.parametrize("package", LAYERS)
def test_no_module_is_shadowed_by_a_public_name(package):
    public = set(getattr(importlib.import_module(package), "__all__", ()))
    rooms = {room(module) for module in modules(package)}
    assert len(rooms) > 10
    assert not rooms & public


def test_folders_of_hotswap_hold_nothing_but_rooms():
    """What a folder's `__init__` imported, help would import too: see tests/hotswap/test_startup.py."""
    for path in sorted((ROOT / "hotswap").glob("*/__init__.py")):
        body = ast.parse(path.read_text()).body
        assert path.parent.name == "cli" or [type(node) for node in body] == [ast.Expr], path


# --- what imports cost ------------------------------------------------------------------------------------------

HEAVY = [
    "torchvision",
    "timm",
    "triton",
    "accelerate",
    "torchmetrics",
    "PIL",
    "h5py",
    "skimage",
    "click",
    "transformers",
    "huggingface_hub",
]
PROBE = """
import sys
import torch
before = set(sys.modules)
def no_compile(*a, **k): raise AssertionError("compiled at import")
torch.compile = torch.jit.script = no_compile
import {package}
for name in {package}.__all__: getattr({package}, name)  # those of hotswap are imported when they are asked for
new = set(sys.modules) - before
heavy = [name for name in {heavy} if name in new]
assert not heavy, heavy
assert not torch.cuda.is_initialized()
unwanted = [name for name in {above} if name in sys.modules]
assert not unwanted, unwanted
"""


@pytest.mark.parametrize("package", ["pac_ops", "hotswap"])
def test_importing_is_light(package):
    above = LAYERS[LAYERS.index(package) + 1 :]
    code = PROBE.format(package=package, heavy=HEAVY, above=above)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_names_of_test_files_are_unique():
    """Pytest imports them by these alone, and leaves out all but the first."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
