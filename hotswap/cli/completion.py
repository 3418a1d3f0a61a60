"""Shell completion of files, folders and names of networks, without importing any package."""

import importlib.util
import re
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

PROVIDERS = ("torchvision", "timm")
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:(?!def ).*\n){0,12}?def (\w+)\(", re.MULTILINE)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete files, by the shell's own means."""
    return [CompletionItem(incomplete, type="file")]


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete folders, by the shell's own means."""
    return [CompletionItem(incomplete, type="dir")]


def networks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete providers and, after the colon, the provider's networks."""
    provider, colon, start = incomplete.partition(":")
    if not colon:
        return [CompletionItem(f"{name}:") for name in PROVIDERS if name.startswith(incomplete)]
    if provider not in PROVIDERS:
        return []
    return [CompletionItem(f"{provider}:{name}") for name in registered(provider) if name.startswith(start)]


def registered(provider: str) -> list[str]:
    """The names of a provider's networks, read from its source because importing it takes seconds."""
    spec = importlib.util.find_spec(provider)
    places = [] if spec is None else spec.submodule_search_locations or []
    sources = [file for place in places for file in sorted(Path(place, "models").rglob("*.py"))]
    return sorted({name for file in sources for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))})


class _Bash(BashComplete):
    """Joins words again that bash splits at colons, such as `timm:resnet`."""

    def get_completion_args(self) -> tuple[list[str], str]:
        arguments, incomplete = super().get_completion_args()
        words: list[str] = []
        for word in (*arguments, incomplete):
            if words and (word == ":" or words[-1].endswith(":")):
                words[-1] += word
            else:
                words.append(word)
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value.rpartition(':')[2]}"


def install() -> None:
    """Register the completion for bash."""
    add_completion_class(_Bash)
