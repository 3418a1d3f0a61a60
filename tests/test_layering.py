"""The house rules of DESIGN.md section 2: who may import whom, and what an import may cost."""

import ast
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
    for path in (ROOT / "pac_ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            else:
                continue
            assert oracle not in imported, path


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
