"""How a network's modules are named: paths, patterns, and the `conv{stage}_{index}` aliases."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hotswap.errors import HotswapError

if TYPE_CHECKING:
    from torch import nn

    from hotswap.network.dry_run import Observation

AUTO = "auto"
INPUT = "input"  # as a guide: the image itself, the first argument of the network
REGEX_PREFIX = "re:"


def relative(path: str, root: str) -> str:
    """The path of a module as a module around it has it."""
    return path.removeprefix(root).removeprefix(".")


def joined(*paths: str) -> str:
    """Paths one inside the other as one path; that of the network itself is ""."""
    return ".".join(path for path in paths if path)


def stages(model: "nn.Module", observation: "Observation") -> list[list[str]]:
    """Paths of the spatial convolutions, of windows beyond 1x1, in the order of their first call, split into stages.

    A new stage starts where the output size of the spatial convolutions changes.
    """
    from torch import nn

    modules = dict(model.named_modules())
    result: list[list[str]] = []
    seen: set[str] = set()
    size: tuple[int, ...] | None = None
    for call in observation.calls:
        module = modules[call.path]
        if call.path in seen or call.output_shape is None:
            continue
        if not isinstance(module, nn.Conv2d) or max(module.kernel_size) == 1:
            continue
        seen.add(call.path)
        if call.output_shape[-2:] != size:
            size = call.output_shape[-2:]
            result.append([])
        result[-1].append(call.path)
    return result


def aliases(stage_paths: Sequence[Sequence[str]]) -> dict[str, str]:
    """`conv{stage}_{index}` -> path, both counted from 1, as the VGG papers name them."""
    return {
        f"conv{stage}_{index}": path
        for stage, paths in enumerate(stage_paths, start=1)
        for index, path in enumerate(paths, start=1)
    }


def is_pattern(name: str) -> bool:
    """Whether a name stands for a set: a regular expression after `re:`, or a glob with `*`, `?` or `[`."""
    return name.startswith(REGEX_PREFIX) or any(c in name for c in "*?[")


def match(pattern: str, paths: Iterable[str], alias_of: dict[str, str]) -> list[str]:
    """The paths whose path or alias a pattern matches whole.

    Args:
        pattern: see `is_pattern`; `*` also spans dots.
        paths: what to choose from, in the order of the result.
        alias_of: path -> alias.

    Raises:
        HotswapError: where a regular expression does not compile.
    """
    if pattern.startswith(REGEX_PREFIX):
        try:
            compiled = re.compile(pattern.removeprefix(REGEX_PREFIX))
        except re.error as error:
            raise HotswapError(f"target {pattern!r} is no valid regular expression: {error}") from error
    else:
        compiled = re.compile(fnmatch.translate(pattern))
    return [p for p in paths if compiled.fullmatch(p) or (p in alias_of and compiled.fullmatch(alias_of[p]))]


def closest(name: str, candidates: Iterable[str]) -> str:
    """A hint at the names nearest to a wrong one, as the end of a sentence; empty where none is near."""
    known = list(candidates)
    near = difflib.get_close_matches(name, known, n=len(known) or 1, cutoff=0.5)
    # Names that continue the wrong one come first, then by likeness; ties stay in the network's order.
    likeness = {k: difflib.SequenceMatcher(None, k, name).ratio() for k in near}
    near.sort(key=lambda k: (not k.startswith(name), -likeness[k], known.index(k)))
    return f"; closest: {', '.join(near[:3])}" if near else ""
