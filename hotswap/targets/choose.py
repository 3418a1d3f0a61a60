"""Resolves names, patterns and "paper" to convolutions and guides, or says why they cannot be swapped."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from hotswap.errors import HotswapError
from hotswap.network.names import AUTO, INPUT, is_pattern, match
from hotswap.targets.convolution import why_not_swappable
from hotswap.targets.lookup import Name, Names, shown
from hotswap.targets.sites import Site

Targets = Name | Iterable[Name]
Guide = Name | Sequence[Name]  # several count as one, with all their channels
Guides = Guide | Mapping[Name, Guide]  # one for all targets, or by target

Target = TypeVar("Target", bound=Hashable)
Value = TypeVar("Value")
PAPER = "paper"  # as a target: what the paper swaps
_GUIDE_STAGE = 2  # its guide is the last convolution of the second stage
_TARGET_STAGES = 3  # its targets are the last convolutions of the last three stages
_NOTE = (
    f'"{PAPER}" swaps convolutions; on real labels that gained 0.7 points on one network of two over plain '
    'fine-tuning, where it was calibrated, and else nothing; the target "resize" gained up to 1.9, near edges 3.5 '
    "(docs/evidence.md)"
)


@dataclass(frozen=True)
class Chosen:
    """One convolution or enlargement that a person asked for."""

    target: str  # module path
    site: Site | None  # of an enlargement
    alias: str | None
    guide: tuple[str, ...]  # module paths, and INPUT
    guide_scale: float

    @property
    def name(self) -> str:
        """The name of the target in a plan."""
        return self.target if self.site is None else self.site.name


def choose(
    names: Names, targets: Sequence[Name], guide: Guides, guide_scale: Any
) -> tuple[tuple[Chosen, ...], tuple[str, ...]]:
    """Resolve convolutions, their guides and scales; also returns notes. See `choose_enlargements` for enlargements.

    Each target is a module, an exact path or alias, a glob over both (`*`, `?`, `[`), a regular expression after
    `re:`, or "paper". An exact path wins over an alias of the same name. Exact names must be swappable; patterns and
    "paper" pass over what is not, and a note says so. A guide is a module, a path, an alias, "input", "auto", a list
    of these, or a mapping from targets to these.

    Raises:
        HotswapError: where a name matches nothing swappable, with the closest that would, or a target has no guide.
    """
    notes: list[str] = []
    paths = _paths(names, targets, notes)
    guides = {
        path: tuple(names.sources(chosen, lambda: as_paper(names)[1], AUTO))
        for path, chosen in _per_target(names, "guide", guide, paths).items()
    }
    _check_order(names, guides)
    scales = _per_target(names, "guide_scale", guide_scale, paths)
    alias_of = names.alias_of
    resolved = (Chosen(path, None, alias_of.get(path), guides[path], scale(scales[path])) for path in paths)
    return tuple(resolved), tuple(notes)


def _paths(names: Names, wanted: Sequence[Name], notes: list[str]) -> list[str]:
    if not wanted:
        raise HotswapError('targets must name at least one convolution, got none; try "auto"')
    paths: dict[str, None] = {}  # an ordered set
    for name in wanted:
        if name == PAPER:
            named: Sequence[str] = as_paper(names)[0]
            notes.append(_NOTE)
        elif isinstance(name, str) and is_pattern(name):
            named = _matching(names, name, notes)
        else:
            named = (names.path(name, "target"),)
            _check_target(names, name, named[0])
        paths |= dict.fromkeys(named)
    return list(paths)


def listed(targets: Targets) -> list[Name]:
    """A list of targets, also of a single one."""
    if isinstance(targets, Name):
        return [targets]
    if not isinstance(targets, Iterable):
        raise HotswapError(f"targets must be a name, a module or several of them, got a {type(targets).__name__}")
    return list(targets)


def _per_target(names: Names, what: str, value: Any, paths: Sequence[str]) -> dict[str, Any]:
    """The value of each target: one for all, or from a mapping whose keys name targets as `choose` takes them."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(paths, value)

    def matched(key: Any) -> list[str]:
        if is_general(key, PAPER):
            taken = as_paper(names)[0] if key == PAPER else match(key, paths, names.alias_of)
        else:
            taken = [names.path(key, f"key of {what}:")]
        return [path for path in paths if path in taken]

    labels = {path: names.both(path) for path in paths}
    return by_target(what, value, labels, matched, PAPER)[0]


def as_paper(names: Names) -> tuple[tuple[str, ...], str]:
    """The paper's rule: last spatial convolution of each of the last three stages, guided by the second stage's.

    Raises:
        HotswapError: where the network has too few stages, or could not be run.
    """
    calls = names.require_observation(f'"{PAPER}"').calls
    shapes = {call.path: call.output_shape for call in reversed(calls) if call.output_shape is not None}
    # A map of one pixel (a convolution that stands in for a fully connected layer) has no edges to follow.
    stages = [stage for stage in names.stages if math.prod(shapes[stage[0]][-2:]) > 1]
    # One channel is a gate or a prediction, no features.
    features = [[path for path in stage if _channels(names, path) > 1] for stage in stages]
    stages = [stage for stage in features if stage]
    swappable = [[path for path in stage if why_not(names, path) is None] for stage in stages]
    guides = stages[_GUIDE_STAGE - 1 : _GUIDE_STAGE]
    # Two frames stacked for one encoder cannot guide what runs on the first alone.
    batch = shapes[guides[0][-1]][0] if guides else None
    matching = [[p for p in stage if shapes[p][0] == batch] for stage in swappable[_GUIDE_STAGE:]]
    later = [stage[-1] for stage in matching if stage][-_TARGET_STAGES:]
    if not later:
        raise HotswapError(
            f'"{PAPER}" needs spatial convolutions at three output sizes or more, and this network has '
            f"{len(stages)}; name targets and guide (hotswap.inspect lists them)"
        )
    return tuple(later), guides[0][-1]


def _matching(names: Names, pattern: str, notes: list[str]) -> list[str]:
    layers = nn.Conv2d | nn.ConvTranspose2d
    convolutions = [path for path, module in names.model.named_modules() if isinstance(module, layers)]
    matched = match(pattern, convolutions, names.alias_of)
    return usable(pattern, matched, lambda path: why_not(names, path), str, "no convolution", notes)


def _channels(names: Names, path: str) -> int:
    conv = names.model.get_submodule(path)
    return conv.out_channels if isinstance(conv, nn.Conv2d) else 0


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
    hint = "" if nearest is None else f"; the nearest that can is {names.both(nearest)}"
    shown = names.both(path) if isinstance(name, nn.Module) else repr(name)
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
            hint = f"; the last convolution before it is {names.both(earlier[-1])}" if earlier else ""
            inside = target.startswith(f"{guide}.") or guide == ""
            relation = "is" if guide == target else "contains" if inside else "is computed after"
            raise HotswapError(f"guide {names.both(guide)} {relation} target {names.both(target)}{hint}")


def by_target(
    what: str,
    values: Mapping[Any, Value],
    labels: Mapping[Target, str],
    matched: Callable[[Any], Iterable[Target]],
    word: str,
    *,
    others_too: bool = False,
) -> tuple[dict[Target, Value], dict[Any, Value]]:
    """The value of each target, from a mapping whose keys name targets; and, of `others_too`, the rest of it.

    A key that names one target wins over a general one, a pattern or `word`; of these the first wins. `what` is the
    name of the argument, and `labels` are the targets, for messages.

    Raises:
        HotswapError: where a target has no value, or a key names no target.
    """
    exact: dict[Target, Value] = {}
    general: dict[Target, Value] = {}
    others: dict[Any, Value] = {}
    for key, value in values.items():
        named = dict.fromkeys(matched(key), value)
        if not named:
            others[key] = value
        elif is_general(key, word):
            general = named | general
        else:
            exact |= named
    if others and not others_too:
        known = ", ".join(labels.values())
        raise HotswapError(f"{what} has {shown(next(iter(others)))}, which is none of the targets ({known})")
    values_of = general | exact
    for target, label in labels.items():
        if target not in values_of:
            raise HotswapError(f"{what} must have a key for target {label}, and has none")
    return {target: values_of[target] for target in labels}, others


def is_general(key: Any, word: str) -> bool:
    """Whether a name stands for several targets: a pattern, or this word."""
    return isinstance(key, str) and (key == word or is_pattern(key))


def usable(
    pattern: str,
    matched: Sequence[Target],
    why_not: Callable[[Target], str | None],
    label: Callable[[Target], str],
    nothing: str,
    notes: list[str],
) -> list[Target]:
    """The matches of a pattern that can be swapped; a note names those passed over.

    `nothing` is what a message says where the pattern matched none.

    Raises:
        HotswapError: where nothing can be.
    """
    kept = [target for target in matched if why_not(target) is None]
    if not kept:
        reason = f"only {label(matched[0])}, where {why_not(matched[0])}" if matched else nothing
        raise HotswapError(f"target {pattern!r} matched {reason} (hotswap.inspect lists what can be swapped)")
    if passed_over := [target for target in matched if target not in kept]:
        example = f"{label(passed_over[0])}: {why_not(passed_over[0])}"
        notes.append(f"{pattern!r} also matched {len(passed_over)} that cannot be swapped ({example})")
    return kept


def scale(given: Any) -> float:
    """Check a guide scale.

    Raises:
        HotswapError: where it is no number.
    """
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise HotswapError(
            f'guide_scale must be a number >= 0, a mapping from targets to numbers, or "{AUTO}", got {given!r}'
        )
    return float(given)
