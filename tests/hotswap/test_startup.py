"""What `import hotswap` and the command line import before there is work to do: nothing that takes seconds."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import networks
import pytest

import hotswap
from hotswap import choices
from hotswap.cli import main
from pac_ops import enlargement

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "numpy", "PIL", "safetensors", "rich", "timm", "torchvision", "transformers", "huggingface_hub"]
NET = "networks:Plain"
VERIFY = ("verify", "net.pt", "--model", NET)
CONVERT = ("convert", NET, "--weights", "net.pt", "-o", "out.pt")

# Runs commands one after another; of each the exit code, what it said, and what of the heavy is imported by then.
RUN = """
import json, os, sys
from click.testing import CliRunner
from hotswap.cli import main
cases, heavy = map(json.loads, sys.argv[1:])
class NoTorch:  # so that a command which goes on ends here
    def find_spec(self, name, *_):
        assert name != "torch", "torch is imported"
sys.meta_path.insert(0, NoTorch())
told = []
for environment, words in cases:
    done = CliRunner().invoke(main, words, prog_name="hotswap", env=environment)
    told.append((done.exit_code, done.stdout, done.stderr, [name for name in heavy if name in sys.modules]))
print(json.dumps(told))
"""


def answers(cases, cwd):
    """Of each case, that is an environment and words: exit code, stdout, stderr and heavy modules."""
    paths = [str(ROOT), str(Path(networks.__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(cases), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def commands(group=main, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*path, name)
        if isinstance(command := group.get_command(context, name), click.Group):
            yield from commands(command, (*path, name))


def test_help_and_version_import_nothing_heavy(tmp_path):
    cases = [({}, [*words, "--help"]) for words in [(), *commands()]] + [({}, ["--version"])]
    for (_, words), (code, out, errors, heavy) in zip(cases, answers(cases, tmp_path), strict=True):
        assert (code, errors, heavy) == (0, "", []), words
        assert out.startswith("hotswap, version" if words == ["--version"] else "Usage: hotswap"), words


COMPLETED = {"hotswap ": "verify", "hotswap fine": "finetune", "hotswap convert --met": "--method", "hotswap data ": "check",
             "hotswap plan m --resize ": "nearest", "hotswap inspect my_": "file,my_"}  # fmt: skip


def test_completion_imports_nothing_heavy(tmp_path):
    cases = [
        (
            {"_HOTSWAP_COMPLETE": "bash_complete", "COMP_WORDS": text, "COMP_CWORD": str(len(text.split(" ")) - 1)},
            [],
        )
        for text in COMPLETED
    ]
    for (text, expected), (code, out, errors, heavy) in zip(COMPLETED.items(), answers(cases, tmp_path), strict=True):
        assert (code, errors, heavy) == (0, "", []), text
        assert expected in out, text


WRONG = [
    (2, ("convret",), "No such command"),
    (2, ("data", "chekc"), "No such command"),
    (2, ("inspect", NET, "--nonsense"), "No such option"),
    (2, ("inspect",), "Missing argument"),
    (2, ("revert", "net.pt"), "Missing option"),
    (2, ("convert", NET, "-o", "out.pt"), "Missing option '--weights'"),
    (2, (*CONVERT[:4], "--target", "target"), "Missing option '-o'"),
    (2, (*CONVERT, "--resize", "cubic"), "is not one of 'bilinear'"),
    (2, (*CONVERT, "--method", "magic"), "is not one of 'auto'"),
    (2, (*CONVERT, "--footprint", "3"), "must be auto, one of 2, 4, 6, 8, or"),
    (2, (*CONVERT, "--conserve", "sum"), "is not one of 'mean'"),
    (2, (*CONVERT, "--kernel", "gausian"), "must be gaussian or inv_"),
    (2, (*CONVERT, "--guide-scale", "x"), "must be a number or auto"),
    (2, (*CONVERT, "--guide-scale", "-1"), "must be a number >= 0"),
    (2, (*CONVERT, "--guide-scale", "auto"), "measured on images"),
    (2, (*CONVERT, "--conserve", "mean"), "measured on images"),
    (2, (*CONVERT, "--deviation", "2"), "not in the range"),
    (2, (*CONVERT, "--deviation", "0.2"), "give --calibrate-on"),
    (2, (*CONVERT, "--plan", "plan.json", "--calibrate-on", "photos"), "`hotswap calibrate` the result"),
    (2, (*CONVERT, "--plan", "plan.json", "--target", "target"), "leave out --target"),
    (2, (*VERIFY, "--limit", "0"), "not in the range"),
    (2, (*VERIFY, "--limit", "many"), "not a valid integer"),
    (2, (*VERIFY, "--input-size", "3x"), "must be CxHxW"),
    (2, (*VERIFY, "--mean", "a,b"), "must be numbers"),
    (2, (*VERIFY, "--std", "0"), "must be greater than 0"),
    (2, ("report", "net.pt", "--images", "photos", "-o", "r.html", "--outputs", "nice"), "is not one of"),
    (2, ("export", "net.pt", "-o", "net.bin", "--format", "tflite"), "is not one of"),
    (2, ("data", "check", "cifar", "."), "is not one of"),
    (2, ("finetune", "quickstart", "--max-steps", "0"), "not in the range"),
    (1, ("inspect", "vgg16"), "must be torchvision:NAME"),
    (1, ("plan", "torchvision:vgg16?x"), "an option must be key=value"),
    (1, ("inspect", "hf:one-word"), "must be hf-hub:OWNER/NAME"),
    (1, (*CONVERT, "--plan", "nowhere.json"), "No such file"),
    (1, (*CONVERT, "--calibrate-on", "nowhere"), "cannot read images from 'nowhere'"),
    (1, ("convert", NET, "--weights", "nowhere.pt", "-o", "out.pt"), "No such file"),
    (1, ("convert", NET, "--weights", "net.pt", "-o", "out.onnx"), "must end in .safetensors"),
    (1, ("convert", NET, "--weights", "net.pt", "-o", "net.pt"), "is also an input"),
    (1, (*CONVERT, "--max-shard-size", "5GB"), "only a .safetensors file"),
    (1, ("verify", "nowhere.pt", "--quiet"), "No such file"),
    (1, ("verify", "hf-hub:one-word"), "must be hf-hub:OWNER/NAME"),
    (1, (*VERIFY, "--images", "photos"), "there is no image"),
    (1, ("calibrate", "net.pt", "--images", "nowhere", "-o", "out.pt"), "cannot read images"),
    (1, ("calibrate", "net.pt", "--images", "photos", "-o", "nowhere/out.pt"), "there is no folder"),
    (1, ("revert", "nowhere.pt", "-o", "out.pt"), "No such file"),
    (1, ("export", "net.pt", "-o", "net.bin"), "must end in .onnx or .pt2"),
    (1, ("export", "nowhere.pt", "-o", "net.onnx"), "No such file"),
    (1, ("report", "net.pt", "--images", "photos", "-o", "r.pdf"), "must end in .html"),
    (1, ("diff", "net.pt", "nowhere.pt"), "No such file"),
    (1, ("push", "net.pt", "one-word"), "must be hf-hub:OWNER/NAME"),
    (1, ("push", "nowhere.pt", "owner/name"), "No such file"),
    (2, ("enlarge", "net.png", "photo.jpg"), "Missing option '-o'"),
    (2, ("enlarge", "net.png", "photo.jpg", "-o", "out.png", "--space", "hsv"), "is not one of"),
    (1, ("enlarge", "labels.jpg", "photo.jpg", "-o", "out.png"), "must end in .npy or .png"),
    (1, ("enlarge", "labels.png", "photo.jpg", "-o", "out.jpg"), "must end in .npy or .png"),
    (1, ("enlarge", "labels.png", "photo.jpg", "-o", "out.png"), "No such file"),
    (1, ("finetune", "nowhere.yaml"), "No such file"),
    (1, ("finetune", "quikstart"), "closest: quickstart"),
    (1, ("finetune", "quickstart", "--set", "nonsense=1"), "nonsense"),
    (1, ("evaluate", "quickstart", "--arm", "none"), "there is no arm"),
    (1, ("predict", "quickstart", "--checkpoint", "nowhere.pt", "--output-dir", "out"), "No such file"),
    (1, ("data", "check", "voc", "nowhere"), "there is no folder"),
]


def test_wrong_usage_imports_nothing_heavy(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "net.pt").write_bytes(b"PK\x03\x04 no command comes so far as to read it")
    before = sorted(tmp_path.rglob("*"))
    cases = [({}, words) for _, words, _ in WRONG]
    for (code, words, reason), (found, out, errors, heavy) in zip(WRONG, answers(cases, tmp_path), strict=True):
        assert (found, out, heavy) == (code, "", []), (words, errors)
        assert reason in errors, words
    assert sorted(tmp_path.rglob("*")) == before


def test_words_to_choose_from_are_those_of_the_operators():
    assert choices.FOOTPRINTS == enlargement.FOOTPRINTS


# --- the package ----------------------------------------------------------------------------------------------------


def test_importing_hotswap_imports_nothing_but_itself():
    code = "import sys; old = set(sys.modules); import hotswap; print(*(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "hotswap"
    }


def test_every_public_name_is_there_and_type_checkers_see_it_where_it_is():
    tree = ast.parse(Path(hotswap.__file__).read_text())
    seen = {
        alias.name: node.module
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == hotswap._MODULE_OF
    assert sorted(seen) == hotswap.__all__
    assert set(hotswap.__all__) <= set(dir(hotswap))
    for name in hotswap.__all__:
        assert getattr(hotswap, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'hotswap' has no attribute 'konvert'"):
        hotswap.konvert  # noqa: B018
