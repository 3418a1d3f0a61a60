"""What all commands have in common: --quiet, exit codes, help with examples; and what the TAB key offers."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import forks
import networks
import pytest
import torch
from click.shell_completion import BashComplete, ShellComplete
from click.testing import CliRunner
from PIL import Image

import hotswap
from hotswap.checkpoint.read import read_plan
from recipes.__main__ import main

ROOT = Path(__file__).parents[3]
NET = "networks:Plain"
SIZE = ("--input-size", "16")


def commands(group=main, path=()):
    """Every command there is, those of groups too, as the words that call it."""
    context = click.Context(group, info_name="hotswap")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_takes_quiet_and_json_and_its_help_ends_with_examples(words):
    text = run(*words, "--help").stdout
    assert "-q, --quiet" in text
    assert "--json" in text
    assert "Examples:" in text
    assert all(f"hotswap {' '.join(words)}" in line for line in text.partition("Examples:\n")[2].splitlines()[:1])


def test_help_lists_every_command_with_a_whole_sentence():
    text = run("--help").stdout.partition("Commands:\n")[2].partition("Examples:")[0]
    assert {line.split()[0] for line in text.splitlines() if re.match("  [a-z]", line)} == {
        words[0] for words in COMMANDS
    }
    assert "..." not in text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_wrong_usage_is_2(words):
    done = run(*words, "--no-such-option")
    assert (done.exit_code, done.stdout) == (2, "")


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "hotswap", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"hotswap, version {hotswap.__version__}\n")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    torch.save(networks.Plain().state_dict(), "w.pth")
    hotswap.save(hotswap.convert(networks.Plain(), "target", "guide"), "s.safetensors")
    Path("photos").mkdir()
    Image.effect_noise((16, 16), 50).convert("RGB").save("photos/a.png")
    return tmp_path


SWAP = ("--target", "target", "--guide", "guide")
QUIET = [
    ("inspect", NET, *SIZE),
    ("plan", NET, *SWAP, *SIZE),
    ("convert", NET, "--weights", "w.pth", *SWAP, *SIZE, "-o", "out.pt"),
    ("convert", NET, "--dry-run", *SWAP, *SIZE),
    ("verify", "s.safetensors", "--model", NET, *SIZE),
    ("calibrate", "s.safetensors", "--model", NET, "--images", "photos", *SIZE, "-o", "out.pt"),
    ("revert", "s.safetensors", "-o", "out.pt"),
    ("diff", "s.safetensors", "s.safetensors"),
]


@pytest.mark.parametrize("command", QUIET, ids=[c[0] for c in QUIET])
def test_quiet_is_silent_but_for_json_and_errors(here, command):
    loud = run(*command, "--json")
    done = run(*command, "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    done = run(*command, "-q", "--json")
    assert (done.exit_code, done.stdout, done.stderr) == (0, loud.stdout, "")
    done = run(command[0], "nowhere:x", *command[2:], "--quiet")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


FAILING = {  # each for want of a file, a module or a network
    ("calibrate",): ("gone.pt", "--images", "photos", "-o", "out.pt"),
    ("convert",): ("nowhere:x", "--weights", "w.pth", "-o", "out.pt"),
    ("data", "check"): ("voc", "gone"),
    ("diff",): ("s.safetensors", "gone.pt"),
    ("doctor",): (),
    ("enlarge",): ("gone.png", "photos/a.png", "-o", "out.png"),
    ("evaluate",): ("gone.yaml",),
    ("export",): ("gone.pt", "-o", "out.onnx"),
    ("finetune",): ("gone.yaml", "--output-dir", "out"),
    ("inspect",): ("nowhere:x",),
    ("migrate",): ("gone.pt", "-o", "out.pt"),
    ("plan",): ("nowhere:x",),
    ("predict",): ("gone.yaml", "--checkpoint", "s.safetensors", "--output-dir", "out"),
    ("push",): ("gone.pt", "owner/name"),
    ("report",): ("gone.pt", "--images", "photos", "-o", "out.html"),
    ("revert",): ("gone.pt", "-o", "out.pt"),
    ("search",): ("nowhere:x", "--images", "photos", "--labels", "photos", "-o", "out.pt"),
    ("verify",): ("gone.pt",),
}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_fails_says_so_in_one_line_also_with_quiet(here, monkeypatch, words):
    monkeypatch.setattr("hotswap.doctor.doctor", lambda: Unhealthy())
    before = sorted(here.rglob("*"))
    done = run(*words, *FAILING[words], "--quiet")
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(here.rglob("*")) == before


class Unhealthy:
    healthy = False

    def to_dict(self):
        return {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_line(here):
    status, _, errors = forks.run(diff_to_a_full_disk, folder=here)
    assert (status, errors) == (1, "Error: cannot write to stdout: No space left on device\n")


def diff_to_a_full_disk():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    main(["diff", "s.safetensors", "s.safetensors", "--json"], prog_name="hotswap")


def test_quiet_is_forgotten_afterwards(here):
    assert run(*QUIET[0], "--quiet").stdout == ""
    assert run(*QUIET[0]).stdout


# --- a plan from another machine --------------------------------------------------------------------------------


def fingerprint(model):
    """Of what a network makes of an image, to the last bit."""
    with torch.no_grad():
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        return hashlib.sha256(model.eval()(image).numpy().tobytes()).hexdigest()


def test_a_plan_made_in_another_process_gives_the_same_network(here):
    """Another process, which hashes text in another order."""
    start = "from hotswap.cli import main; main(prog_name='hotswap')"
    choice = ("--target", "t*", "--guide", "guide", "--guide", "input", "--guide-scale", "0.3", "--learn-scale")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    made = subprocess.run(
        [sys.executable, "-c", start, "plan", NET, *choice, *SIZE, "--json"],
        env=os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    Path("plan.json").write_bytes(made.stdout)
    assert run("convert", NET, "--weights", "w.pth", "--plan", "plan.json", "-o", "replayed.pt").exit_code == 0
    assert run("convert", NET, "--weights", "w.pth", *choice, *SIZE, "-o", "direct.pt").exit_code == 0
    here_made = networks.Plain()
    here_made.load_state_dict(torch.load("w.pth"))
    here_made = hotswap.apply(here_made, read_plan("plan.json"))
    found = {fingerprint(hotswap.load(name, networks.Plain())) for name in ("replayed.pt", "direct.pt")}
    assert found == {fingerprint(here_made)}
    assert found != {fingerprint(hotswap.revert(here_made))}


# --- completion -------------------------------------------------------------------------------------------------


def offered(*words):
    """What is offered for the last word."""
    shell = ShellComplete(main, {}, "hotswap", "_HOTSWAP_COMPLETE")
    return [(item.type, item.value) for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("conv",), ("plain", "convert")),
        (("inspect", "my_seg"), ("file", "my_seg")),
        (("verify", "s."), ("file", "s.")),
        (("calibrate", "s.safetensors", "--images", "ph"), ("dir", "ph")),
        (("convert", "x", "--weights", "w"), ("file", "w")),
        (("convert", "--dry"), ("plain", "--dry-run")),
        (("finetune", "my"), ("file", "my")),
    ],
)
def test_completion_offers(words, expected):
    assert expected in offered(*words)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [(["hotswap", "conv"], "convert"), (["hotswap", "convert", "x", "--dry"], "--dry-run")],
)
def test_completion_in_bash(tmp_path, monkeypatch, words, expected):
    """bash calls the function that click writes; here `hotswap` answers in this process."""
    shell = BashComplete(main, {}, "hotswap", "_HOTSWAP_COMPLETE")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    answer = tmp_path / "hotswap"
    answer.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    answer.chmod(0o755)
    (tmp_path / "answer").write_text(shell.complete() + "\n")
    monkeypatch.setattr(BashComplete, "_check_version", lambda self: None)
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"{shell.source()}\nCOMP_WORDS=({quoted})\nCOMP_CWORD={len(words) - 1}\n"
    script += "complete() { :; }\ncompopt() { :; }\n"
    script += f"_hotswap_completion {answer}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert expected in done.stdout.split()
