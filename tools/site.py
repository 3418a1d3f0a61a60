"""What the docs site has beside the pages in docs/: a hook of mkdocs.

The reference of the API is made of what the packages export, the reference of commands of their own help texts,
and the pages of the project of the files at the top. Links to files that are no pages become their paths, as the
site knows no address of the repository.
"""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PROJECT_PAGES = ("CHANGELOG", "CONTRIBUTING", "SECURITY")
PACKAGES = ("hotswap", "pac_ops")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and leave out of the menu what is not written."""
    for name in PROJECT_PAGES:
        files.append(File.generated(config, f"{name.lower()}.md", content=(ROOT / f"{name}.md").read_text()))
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=api(package)))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    config.nav = written(config.nav, {file.src_uri for file in files})
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links as the site has them."""
    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", _link, markdown)


def _link(match: re.Match[str]) -> str:
    text, address = match.groups()
    if address.startswith("docs/"):  # from a file at the top
        return f"[{text}]({address.removeprefix('docs/')})"
    stem = address.removesuffix(".md")
    if stem in PROJECT_PAGES:
        return f"[{text}]({stem.lower()}.md)"
    file = address.removeprefix("../")
    outside = address.startswith("../") or ((ROOT / file).is_file() and not (ROOT / "docs" / file).exists())
    return f"{text} (`{file}`)" if outside else match[0]


def written(nav: Any, pages: set[str]) -> Any:
    """The menu without pages that do not exist."""
    if isinstance(nav, list):
        return [kept for entry in nav if (kept := written(entry, pages))]
    if isinstance(nav, dict):
        return {title: kept for title, entry in nav.items() if (kept := written(entry, pages))}
    return nav if nav in pages else None


def api(package: str) -> str:
    """A page of all that a package exports, from its docstrings; functions first."""
    module = importlib.import_module(package)
    blocks = []
    for name in sorted(module.__all__, key=lambda name: isinstance(getattr(module, name), type)):
        found = getattr(module, name)
        # By where it is defined: sources are read, where a package only says where its names come from.
        blocks.append(f"::: {found.__module__}.{name}\n    options:\n      heading: {package}.{name}")
    return "\n\n".join([f"# {package}", str(module.__doc__), *blocks])


def commands() -> str:
    """A page of every command's help text."""
    main = importlib.import_module("hotswap.cli").main
    texts = (f"## {name}\n\n```text\n{text}\n```" for name, text in helps("hotswap", main))
    return "\n\n".join(["# Commands", *texts])


def helps(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Full names and help texts of a command and of those below it."""
    context = click.Context(command, parent, info_name=name.rpartition(" ")[2], max_content_width=100)
    yield name, command.get_help(context)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None  # noqa: S101 (it was just listed)
            yield from helps(f"{name} {below}", found, context)
