"""Turns what a person asked for (names, patterns, "auto") into swaps of modules, or says why it cannot."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from hotswap import naming
from hotswap.errors import HotswapError
from hotswap.layers import why_not_swappable
from hotswap.naming import AUTO, INPUT
from hotswap.observe import Observation

Name = str | nn.Module  # a module itself stands for its path
Targets = Name | Iterable[Name]
Guide = Name | Sequence[Name]  # several count as one, with all their channels
Guides = Guide | Mapping[Name, Guide]  # one for all targets, or by target
Value = TypeVar("Value")

_PEFT, _INNER = "base_model.model.", "base_layer"  # where PEFT keeps a network, and a layer that it adapts
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
    """Resolved targets, each with the sources of its guide: module paths, and INPUT."""

    guides: Mapping[str, tuple[str, ...]]  # by target, in the order asked for
    notes: tuple[str, ...]


def choose(names: Names, targets: Targets, guide: Guides) -> Choice:
    """Resolve targets and guides.

    Each target is a module, an exact path or alias, a glob over both (`*`, `?`, `[`), a regular expression after
    `re:`, or "auto". An exact path wins over an alias of the same name. Exact names must be swappable; patterns and
    "auto" pass over what is not, and a note says so. A guide is a module, a path, an alias, "input", "auto", a list
    of these, or a mapping from targets to these.

    Raises:
        HotswapError: where a name matches nothing swappable, with the closest that would, or a target has no guide.
    """
    wanted = listed(targets)
    if not wanted:
        raise HotswapError('targets must name at least one convolution, got none; try "auto"')
    notes: list[str] = []
    paths: dict[str, None] = {}  # an ordered set
    for name in wanted:
        if name == AUTO:
            found = automatic(names)[0]
        elif isinstance(name, str) and naming.is_pattern(name):
            found = _matching(names, name, notes)
        else:
            found = (_exact(names, name, "target"),)
            _check_target(names, name, found[0])
        paths |= dict.fromkeys(found)
    by_target = (
        per_target(names, "guide", guide, paths) if isinstance(guide, Mapping) else dict.fromkeys(paths, guide)
    )
    sources = {path: _sources(names, chosen) for path, chosen in by_target.items()}
    _check_order(names, sources)
    return Choice(sources, tuple(notes))


def listed(targets: Targets) -> list[Name]:
    """Targets one by one, also where there is a single one."""
    if isinstance(targets, Name):
        return [targets]
    if not isinstance(targets, Iterable):
        raise HotswapError(f"targets must be a name, a module or several of them, got a {type(targets).__name__}")
    return list(targets)


def per_target(names: Names, what: str, values: Mapping[Name, Value], paths: Iterable[str]) -> dict[str, Value]:
    """The value of each target, from a mapping whose keys name targets as `choose` takes them.

    A key that names one target wins over a pattern; of several patterns the first wins.

    Args:
        names: of the network.
        what: the argument that the mapping is, for messages.
        values: by a target's path, alias or module, or by a pattern that several match, or "auto".
        paths: of the targets.

    Raises:
        HotswapError: where a target has no value, or a key names no target.
    """
    targets = list(paths)
    exact: dict[str, Value] = {}
    by_pattern: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(key, str) and (key == AUTO or naming.is_pattern(key)):
            taken = automatic(names)[0] if key == AUTO else naming.match(key, targets, names.alias_of)
            matched = [path for path in targets if path in taken]
            by_pattern = dict.fromkeys(matched, value) | by_pattern
        else:
            path = _exact(names, key, f"key of {what}:")
            matched = [path] if path in targets else []
            exact[path] = value
        if not matched:
            known = ", ".join(_both_names(names, path) for path in targets)
            raise HotswapError(f"{what} has {_shown(key)}, which is none of the targets ({known})")
    found = by_pattern | exact
    for path in targets:
        if path not in found:
            raise HotswapError(f"{what} must have a key for target {_both_names(names, path)}, and has none")
    return {path: found[path] for path in targets}


def _sources(names: Names, guide: Any) -> tuple[str, ...]:
    given = [guide] if isinstance(guide, Name) else list(guide) if isinstance(guide, list | tuple) else None
    if given is None:
        raise HotswapError(
            f'guide must be a module path, an alias, a module, "{INPUT}", "{AUTO}", a list of these, or a mapping '
            f"from targets to these, got a {type(guide).__name__}"
        )
    if not given:
        raise HotswapError(f'guide must name at least one source, got an empty list; try "{AUTO}"')
    paths: dict[str, None] = {}
    for name in given:
        if name == AUTO:
            path = automatic(names)[1]
        elif name == INPUT:
            path = INPUT
        else:
            path = _exact(names, name, "guide")
            if path == INPUT:
                raise HotswapError(f"the module {INPUT!r} cannot guide: as a guide that word is the image; rename it")
        paths[path] = None
    return tuple(paths)


def automatic(names: Names) -> tuple[tuple[str, ...], str]:
    """The paper's rule: last spatial convolution of each of the last three stages, guided by the second stage's.

    Raises:
        HotswapError: where the network has too few stages, or could not be run.
    """
    _require_observation(names, '"auto"')
    # A map of one pixel (a convolution that stands in for a fully connected layer) has no edges to follow.
    stages = [stage for stage in names.stages if _pixels(names, stage[0]) > 1]
    # One channel is a gate or a prediction, no features.
    features = [[path for path in stage if _channels(names, path) > 1] for stage in stages]
    stages = [stage for stage in features if stage]
    swappable = [[path for path in stage if why_not(names, path) is None] for stage in stages]
    guides = stages[_AUTO_GUIDE_STAGE - 1 : _AUTO_GUIDE_STAGE]
    # Two frames stacked for one encoder cannot guide what runs on the first alone.
    batch = _batch(names, guides[0][-1]) if guides else None
    matching = [[p for p in stage if _batch(names, p) == batch] for stage in swappable[_AUTO_GUIDE_STAGE:]]
    later = [stage[-1] for stage in matching if stage][-_AUTO_TARGET_STAGES:]
    if not later:
        raise HotswapError(
            f'"auto" needs spatial convolutions at three output sizes or more, and this network has '
            f"{len(stages)}; name targets and guide (hotswap.inspect lists them)"
        )
    return tuple(later), guides[0][-1]


def _exact(names: Names, name: Name, role: str) -> str:
    modules: dict[str, nn.Module] = dict(names.model.named_modules(remove_duplicate=False))
    if isinstance(name, nn.Module):
        path = next((path for path, module in modules.items() if module is name), None)
        if path is None:
            raise HotswapError(
                f"{role} {_shown(name)} is no module of this network, but perhaps of one that it was copied from; "
                "name it by its path"
            )
        return path
    if not isinstance(name, str):
        raise HotswapError(f"{role} must be a string or a module, got a {type(name).__name__}")
    if name not in modules and f"{_PEFT}{name}" in modules:
        name = f"{_PEFT}{name}"
    if name in modules and name:
        first_path = {module: path for path, module in names.model.named_modules()}
        path = str(first_path[modules[name]])
        return path if role == "guide" else _adapted(path, modules)
    if name in names.path_of:
        return names.path_of[name]
    if names.observation is None and name.startswith("conv"):
        _require_observation(names, f"alias {name!r}")
    known = list(names.alias_of.values()) + [path for path in modules if path]
    raise HotswapError(
        f"{role} {name!r} is no module path or alias of this network{naming.closest(name, known)}"
        " (hotswap.inspect lists all)"
    )


def _adapted(path: str, modules: Mapping[str, nn.Module]) -> str:
    """The convolution that an adapter is around, where a path is that of one: it is still what the path names."""
    inner = modules.get(f"{path}.{_INNER}")
    if why_not_swappable(modules[path]) is None or inner is None:
        return path
    return _adapted(f"{path}.{_INNER}", modules)


def _matching(names: Names, pattern: str, notes: list[str]) -> tuple[str, ...]:
    convolutions = [
        path for path, module in names.model.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    matched = naming.match(pattern, convolutions, names.alias_of)
    swappable = tuple(path for path in matched if why_not(names, path) is None)
    if not swappable:
        reason = f"only {matched[0]}, where {why_not(names, matched[0])}" if matched else "no convolution"
        raise HotswapError(f"target {pattern!r} matched {reason} (hotswap.inspect lists what can be swapped)")
    if passed_over := [path for path in matched if path not in swappable]:
        example = f"{passed_over[0]}: {why_not(names, passed_over[0])}"
        notes.append(f"{pattern!r} also matched {len(passed_over)} that cannot be swapped ({example})")
    return swappable


def _batch(names: Names, path: str) -> int | None:
    call = names.observation.first(path) if names.observation else None
    return None if call is None or call.output_shape is None else call.output_shape[0]


def _channels(names: Names, path: str) -> int:
    conv = names.model.get_submodule(path)
    return conv.out_channels if isinstance(conv, nn.Conv2d) else 0


def _pixels(names: Names, path: str) -> int:
    call = names.observation.first(path) if names.observation else None
    return 0 if call is None or call.output_shape is None else math.prod(call.output_shape[-2:])


def why_not(names: Names, path: str) -> str | None:
    """None where the module at `path` can be a target, else the reason, as the end of "X cannot be swapped: ..."."""
    reason = why_not_swappable(names.model.get_submodule(path))
    if reason is None and names.observation is not None and names.observation.first(path) is None:
        return "the network never calls it"
    return reason


def _check_target(names: Names, name: Name, path: str) -> None:
    reason = why_not(names, path)
    if reason is None:
        return
    where = [*dict(names.model.named_modules())]
    position = where.index(path)
    swappable = [p for p in where if why_not(names, p) is None]
    nearest = min(swappable, key=lambda p: abs(where.index(p) - position), default=None)
    hint = "" if nearest is None else f"; the nearest that can is {_both_names(names, nearest)}"
    shown = _both_names(names, path) if isinstance(name, nn.Module) else repr(name)
    raise HotswapError(f"target {shown} cannot be swapped: {reason}{hint}")


def _check_order(names: Names, guides: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a guide that its target runs before, while a better one can still be named."""
    if names.observation is None:
        return  # the graph will tell
    ended = {call.path: index for index, call in reversed(list(enumerate(names.observation.calls)))}
    for target in sorted(guides, key=lambda path: ended[path]):
        for guide in guides[target]:
            if guide == INPUT or ended.get(guide, len(ended)) < ended[target]:
                continue
            if guide not in ended:
                raise HotswapError(f"guide {guide!r} is never called by this network; name a module that is")
            earlier = [path for stage in names.stages for path in stage if ended[path] < ended[target]]
            hint = f"; the last convolution before it is {_both_names(names, earlier[-1])}" if earlier else ""
            inside = target.startswith(f"{guide}.") or guide == ""
            relation = "is" if guide == target else "contains" if inside else "is computed after"
            raise HotswapError(
                f"guide {_both_names(names, guide)} {relation} target {_both_names(names, target)}{hint}"
            )


def _shown(name: Name) -> str:
    return f"of class {type(name).__name__}" if isinstance(name, nn.Module) else repr(name)


def _both_names(names: Names, path: str) -> str:
    alias = names.alias_of.get(path)
    return f"{alias} ({path})" if alias and alias != path else repr(path)


def _require_observation(names: Names, what: str) -> None:
    if names.observation is None:
        raise HotswapError(f"{what} needs one run of the network on fake inputs, and {names.why_unobserved}")
