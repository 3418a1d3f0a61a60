"""Turns what a person asked for (names, patterns, "auto") into swaps of modules, or says why it cannot."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from hotswap import naming
from hotswap.errors import HotswapError
from hotswap.layers import why_not_swappable
from hotswap.naming import AUTO
from hotswap.observe import Observation

_AUTO_GUIDE_STAGE = 2  # the paper guides from the end of the second stage ...
_AUTO_TARGET_STAGES = 3  # ... the last convolution of each of the last three


@dataclass(frozen=True)
class Names:
    """A network's convolutions by path and alias, as far as they are known."""

    model: nn.Module
    observation: Observation | None  # None where the network could not be run ...
    why_unobserved: str | None  # ... for this reason; then there are no aliases

    @property
    def stages(self) -> list[list[str]]:
        """Paths of spatial convolutions by stage; see `naming.stages`."""
        return [] if self.observation is None else naming.stages(self.model, self.observation)

    @property
    def path_of(self) -> dict[str, str]:
        """Alias -> path."""
        return naming.aliases(self.stages)

    @property
    def alias_of(self) -> dict[str, str]:
        """Path -> alias."""
        return {path: alias for alias, path in self.path_of.items()}


@dataclass(frozen=True)
class Choice:
    """Resolved targets and guide, as module paths."""

    targets: tuple[str, ...]
    guide: str
    notes: tuple[str, ...]


def choose(names: Names, targets: Iterable[str] | str, guide: str) -> Choice:
    """Resolve targets and guide.

    Each target is an exact path or alias, a glob over both (`*`, `?`, `[`), a regular expression after `re:`, or
    "auto". An exact path wins over an alias of the same name. Exact names must be swappable; patterns and "auto"
    pass over what is not, and a note says so.

    Raises:
        HotswapError: where a name matches nothing swappable, with the closest that would.
    """
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if not wanted:
        raise HotswapError('targets must name at least one convolution, got none; try "auto"')
    notes: list[str] = []
    paths: dict[str, None] = {}  # an ordered set
    for name in wanted:
        if not isinstance(name, str):
            raise HotswapError(f"a target must be a string, got a {type(name).__name__}")
        if name == AUTO:
            found = automatic(names)[0]
        elif naming.is_pattern(name):
            found = _matching(names, name, notes)
        else:
            found = (_exact(names, name, "target"),)
            _check_target(names, name, found[0])
        paths |= dict.fromkeys(found)
    if not isinstance(guide, str):
        raise HotswapError(f'guide must be a module path, an alias or "auto", got a {type(guide).__name__}')
    chosen = automatic(names)[1] if guide == AUTO else _exact(names, guide, "guide")
    _check_order(names, tuple(paths), chosen)
    return Choice(tuple(paths), chosen, tuple(notes))


def automatic(names: Names) -> tuple[tuple[str, ...], str]:
    """The paper's rule: last spatial convolution of each of the last three stages, guided by the second stage's.

    Raises:
        HotswapError: where the network has too few stages, or could not be run.
    """
    _require_observation(names, '"auto"')
    # A map of one pixel (a convolution that stands in for a fully connected layer) has no edges to follow.
    stages = [stage for stage in names.stages if _pixels(names, stage[0]) > 1]
    swappable = [[path for path in stage if _why_not(names, path) is None] for stage in stages]
    later = [stage[-1] for stage in swappable[_AUTO_GUIDE_STAGE:] if stage][-_AUTO_TARGET_STAGES:]
    if not later:
        raise HotswapError(
            f'"auto" needs spatial convolutions at three output sizes or more, and this network has '
            f"{len(stages)}; name targets and guide (hotswap.inspect lists them)"
        )
    return tuple(later), stages[_AUTO_GUIDE_STAGE - 1][-1]


def _exact(names: Names, name: str, role: str) -> str:
    modules: dict[str, nn.Module] = dict(names.model.named_modules(remove_duplicate=False))
    if name in modules and name:
        first_path = {module: path for path, module in names.model.named_modules()}
        return str(first_path[modules[name]])
    if name in names.path_of:
        return names.path_of[name]
    if names.observation is None and name.startswith("conv"):
        _require_observation(names, f"alias {name!r}")
    known = list(names.alias_of.values()) + [path for path in modules if path]
    raise HotswapError(
        f"{role} {name!r} is no module path or alias of this network{naming.closest(name, known)}"
        " (hotswap.inspect lists all)"
    )


def _matching(names: Names, pattern: str, notes: list[str]) -> tuple[str, ...]:
    convolutions = [path for path, module in names.model.named_modules() if isinstance(module, nn.Conv2d)]
    matched = naming.match(pattern, convolutions, names.alias_of)
    swappable = tuple(path for path in matched if _why_not(names, path) is None)
    if not swappable:
        reason = f"only {matched[0]}, where {_why_not(names, matched[0])}" if matched else "no convolution"
        raise HotswapError(f"target {pattern!r} matched {reason} (hotswap.inspect lists what can be swapped)")
    if passed_over := [path for path in matched if path not in swappable]:
        example = f"{passed_over[0]}: {_why_not(names, passed_over[0])}"
        notes.append(f"{pattern!r} also matched {len(passed_over)} that cannot be swapped ({example})")
    return swappable


def _pixels(names: Names, path: str) -> int:
    call = names.observation.first(path) if names.observation else None
    return 0 if call is None or call.output_shape is None else math.prod(call.output_shape[-2:])


def _why_not(names: Names, path: str) -> str | None:
    reason = why_not_swappable(names.model.get_submodule(path))
    if reason is None and names.observation is not None and names.observation.first(path) is None:
        return "the network never calls it"
    return reason


def _check_target(names: Names, name: str, path: str) -> None:
    reason = _why_not(names, path)
    if reason is None:
        return
    where = [*dict(names.model.named_modules())]
    position = where.index(path)
    swappable = [p for p in where if _why_not(names, p) is None]
    nearest = min(swappable, key=lambda p: abs(where.index(p) - position), default=None)
    hint = "" if nearest is None else f"; the nearest that can is {_both_names(names, nearest)}"
    raise HotswapError(f"target {name!r} cannot be swapped: {reason}{hint}")


def _check_order(names: Names, targets: tuple[str, ...], guide: str) -> None:
    """Refuse a guide that a target runs before, while a better one can still be named."""
    if names.observation is None:
        return  # the graph will tell
    ended = {call.path: index for index, call in reversed(list(enumerate(names.observation.calls)))}
    if guide not in ended:
        raise HotswapError(f"guide {guide!r} is never called by this network; name a module that is")
    first = min(targets, key=lambda path: ended[path])
    if ended[guide] < ended[first]:
        return
    earlier = [path for stage in names.stages for path in stage if ended[path] < ended[first]]
    hint = f"; the last convolution before it is {_both_names(names, earlier[-1])}" if earlier else ""
    relation = "is" if guide == first else "contains" if first.startswith(f"{guide}.") else "is computed after"
    raise HotswapError(f"guide {_both_names(names, guide)} {relation} target {_both_names(names, first)}{hint}")


def _both_names(names: Names, path: str) -> str:
    alias = names.alias_of.get(path)
    return f"{alias} ({path})" if alias and alias != path else repr(path)


def _require_observation(names: Names, what: str) -> None:
    if names.observation is None:
        raise HotswapError(f"{what} needs one run of the network on fake inputs, and {names.why_unobserved}")
