"""What a release is made of agrees with itself. `make dist` checks the distributions."""

import re
import tomllib
from pathlib import Path

import check_jsonschema
import pytest
import yaml
from click.testing import CliRunner

import hotswap

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
PYTHONS = ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize(
    ("schema", "path"), [("github-workflows", WORKFLOW), ("citation-file-format", ROOT / "CITATION.cff")]
)
def test_files_for_others_are_what_they_expect(schema, path):
    result = CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", f"vendor.{schema}", str(path)])
    assert result.exit_code == 0, result.output


def test_the_workflow_runs_commands_that_exist_on_all_pythons():
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == PYTHONS
    commands = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert commands >= {"make lint", "make test"}
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {command.removeprefix("make ") for command in commands} <= set(targets)


def test_pythons_are_said_alike():
    prefix = "Programming Language :: Python :: "
    classifiers = [line.removeprefix(prefix) for line in PROJECT["project"]["classifiers"] if line.startswith(prefix)]
    assert [name for name in classifiers if re.fullmatch(r"3\.\d+", name)] == PYTHONS
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"


def test_versions_are_the_same_everywhere():
    version = PROJECT["project"]["version"]
    assert hotswap.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert version in (ROOT / "CHANGELOG.md").read_text()


def test_every_c_file_is_compiled_and_every_header_is_known():
    (extension,) = PROJECT["tool"]["setuptools"]["ext-modules"]
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "pac_ops" / "csrc").iterdir()}
    assert {*extension["sources"], *extension["depends"]} == found
    assert extension["optional"]


def test_dependencies_are_few():
    """What `pip install hotswap` brings; everything else is an extra."""
    names = {re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert names == {"torch", "numpy", "safetensors", "click", "rich", "pillow", "jinja2"}
    assert {"dev", "docs", "export", "hub", "recipes", "smp", "transformers", "zoo"} <= set(
        PROJECT["project"]["optional-dependencies"]
    )
