"""Commands of recipes are found by the `hotswap` command."""

import importlib
import tomllib
from pathlib import Path

import click
import pytest
from runs import invoke

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
