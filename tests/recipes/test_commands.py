"""Commands of recipes are found by the `hotswap` command."""

import importlib
import re
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tiny_recipe import invoke

from hotswap.cli import main
from recipes import dependencies

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
COMMANDS = PROJECT["entry-points"]["hotswap.commands"]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_entry_point_is_a_command_of_its_name(name):
    module, _, attribute = COMMANDS[name].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name


@pytest.mark.parametrize("name", ["finetune", "evaluate", "predict"])
def test_help_shows_options_and_examples(name):
    text = invoke(name, "--help").stdout
    assert "--set" in text
    assert f"hotswap {name}" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("finetune", "quickstart"),
        ("evaluate", "quickstart"),
        ("predict", "quickstart", "--checkpoint", "a.pt", "--output-dir", "out"),
        ("data", "check", "voc", "nowhere"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_the_extra_a_command_names_it(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(dependencies, "PACKAGES", ("torch", "no_such_package"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert done.stderr == "Error: recipes need no_such_package, not installed: pip install 'hotswap[recipes]'\n"
    assert not list(tmp_path.iterdir())


def test_what_commands_look_for_is_in_the_extra():
    extras = PROJECT["optional-dependencies"]
    listed = {re.match(r"[\w-]+", line)[0].lower() for line in extras["recipes"] + extras["zoo"]}
    assert {"pyyaml" if name == "yaml" else name for name in dependencies.PACKAGES} <= listed
