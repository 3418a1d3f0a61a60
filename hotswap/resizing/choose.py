"""Tells the enlargements among the targets from the convolutions, and finds each one's guide."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hotswap import naming
from hotswap.choose import Name, Names, Targets, _exact, _shown, listed
from hotswap.errors import HotswapError
from hotswap.naming import AUTO, INPUT
from hotswap.observe import Inputs
from hotswap.resizing.layers import mode_of
from hotswap.resizing.plan import Resize, why_not_guided
from hotswap.resizing.sites import ALIAS, Site, Sites, find, fine_enough

RESIZE = "resize"  # as a target: every enlargement by 2 or more


@dataclass(frozen=True)
class Chosen:
    """One enlargement that a person asked for."""

    site: Site
    alias: str
    guide: tuple[str, ...]
    guide_scale: float


@dataclass(frozen=True)
class Choice:
    """What a person asked for, taken apart: what is left for the convolutions, and the enlargements."""

    targets: tuple[Any, ...]
    guide: Any
    guide_scale: Any
    enlargements: tuple[Chosen, ...] = ()
    notes: tuple[str, ...] = ()


def split(
    names: Names,
    targets: Targets,
    guide: Any,
    guide_scale: Any,
    footprint: int,
    example_inputs: Inputs | None,
    known: Iterable[Resize] = (),
) -> Choice:
    """Tell enlargements from convolutions in `targets`, and in `guide` and `guide_scale` where they are mappings.

    An enlargement is named by "resize" (all by 2 or more), by its alias `resize_{i}` or a pattern over these, or,
    where it is a module, by that or its path. A pattern that matches no convolution is tried on these paths. Those
    `known`, which are guided already, keep their names.

    Raises:
        HotswapError: where one that was named cannot be guided, or its guide is too coarse, with what would work.
    """
    wanted = listed(targets)
    if not any(_may_enlarge(names, name) for name in wanted):
        return Choice(tuple(wanted), guide, guide_scale)
    if names.observation is None:
        raise HotswapError(
            f"enlargements are found in one run of the network on fake inputs, and {names.why_unobserved}"
        )
    sites = find(names.model, example_inputs, known)
    convolutions: list[Name] = []
    found: dict[Site, None] = {}  # an ordered set
    notes: list[str] = []
    for name in wanted:
        if _may_enlarge(names, name):
            found |= dict.fromkeys(_named(names, sites, name, footprint, notes))
        else:
            convolutions.append(name)
    alone = not convolutions
    guides, other_guides = _per_site(names, sites, "guide", guide, found, alone=alone)
    scales, other_scales = _per_site(names, sites, "guide_scale", guide_scale, found, alone=alone)
    chosen = tuple(
        Chosen(site, sites.alias_of[site], _sources(names, sites, site, guides[site]), _scale(scales[site]))
        for site in found
    )
    return Choice(tuple(convolutions), other_guides, other_scales, chosen, tuple(notes))


def is_automatic(site: Site, footprint: int) -> bool:
    """Whether the target "resize" takes a site."""
    return site.doubles and site.why_not is None and why_not_guided(site.mode, footprint) is None


def _may_enlarge(names: Names, name: Any) -> bool:
    if isinstance(name, nn.Module):
        return not isinstance(name, nn.Conv2d) and mode_of(name) is not None
    if not isinstance(name, str) or name == AUTO:
        return False
    modules = dict(names.model.named_modules())
    if name in modules and name:
        return mode_of(modules[name]) is not None
    if naming.is_pattern(name):
        layers = (nn.Conv2d, nn.ConvTranspose2d)
        convolutions = [path for path, m in modules.items() if isinstance(m, layers) and mode_of(m) is None]
        return not naming.match(name, convolutions, names.alias_of)
    return name == RESIZE or name.startswith(f"{ALIAS}_")


def _named(names: Names, sites: Sites, name: Name, footprint: int, notes: list[str]) -> list[Site]:
    """The enlargements that a target names."""

    def why_not(site: Site) -> str | None:
        return site.why_not or why_not_guided(site.mode, footprint)

    modules = dict(names.model.named_modules())
    if isinstance(name, str) and (naming.is_pattern(name) or (name == RESIZE and name not in modules)):
        matched = [site for site in sites.found if _matches(sites, site, name)]
        usable = [site for site in matched if why_not(site) is None]
        if not usable:
            reason = (
                f"only {matched[0].name}, where {why_not(matched[0])}" if matched else _none(sites, name, why_not)
            )
            raise HotswapError(f"target {name!r} matched {reason} (hotswap.inspect lists what can be swapped)")
        if passed_over := [site for site in matched if site not in usable]:
            example = f"{passed_over[0].name}: {why_not(passed_over[0])}"
            notes.append(f"{name!r} also matched {len(passed_over)} that cannot be swapped ({example})")
        return usable
    site = sites.by_alias.get(name) if isinstance(name, str) else None
    if site is None:
        if isinstance(name, str) and name not in modules:
            close = naming.closest(name, sites.by_alias)
            raise HotswapError(f"target {name!r} is none of the network's resizes{close} (hotswap.inspect lists all)")
        path = _exact(names, name, "target")
        site = next((s for s in sites.found if s.path == path and s.call is None), None)
        if site is None:
            raise HotswapError(f"target {path!r} cannot be swapped: the network never calls it with a map")
    if refusal := why_not(site):
        raise HotswapError(f"target {_shown(name)} cannot be swapped: {refusal}")
    return [site]


def _none(sites: Sites, name: Name, why_not: Callable[[Site], str | None]) -> str:
    """What a target that matched nothing says of what there is: "resize" leaves out what enlarges by less than 2."""
    smaller = [site for site in sites.found if name == RESIZE and not why_not(site)]
    if not smaller:
        return "no convolution or enlargement"
    aliases = ", ".join(
        f'"{sites.alias_of[site]}" ({_times(site.input_size)} to {_times(site.output_size)})' for site in smaller[:3]
    )
    return f"no enlargement by 2 or more along both axes; name one by less by its alias: {aliases}"


def _times(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _matches(sites: Sites, site: Site, name: Any) -> bool:
    if name == RESIZE:
        return site.doubles
    keys = [sites.alias_of[site]] + ([site.path] if site.call is None else [])
    return bool(naming.match(name, keys, {}))


# --- guides ---------------------------------------------------------------------------------------------------


def _per_site(
    names: Names, sites: Sites, what: str, value: Any, found: Iterable[Site], *, alone: bool
) -> tuple[dict[Site, Any], Any]:
    """The value of each enlargement; and what is left of a mapping for the convolutions, if there are any."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(found, value), value
    exact: dict[Site, Any] = {}
    general: dict[Site, Any] = {}
    others: dict[Name, Any] = {}
    for key, item in value.items():
        matched = [site for site in found if _is_key(names, sites, site, key)] if _may_enlarge(names, key) else []
        if not matched:
            others[key] = item
        elif key == RESIZE or (isinstance(key, str) and naming.is_pattern(key)):
            general = dict.fromkeys(matched, item) | general  # of several the first wins
        else:
            exact |= dict.fromkeys(matched, item)
    by_site = general | exact
    known = ", ".join(f"{sites.alias_of[site]} ({site.name})" for site in found)
    if others and alone:
        raise HotswapError(f"{what} has {_shown(next(iter(others)))}, which is none of the targets ({known})")
    for site in found:
        if site not in by_site:
            raise HotswapError(
                f"{what} must have a key for target {sites.alias_of[site]} ({site.name}), and has none"
            )
    return by_site, others


def _scale(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise HotswapError(
            f'guide_scale must be a number >= 0, a mapping from targets to numbers, or "{AUTO}", got {scale!r}'
        )
    return float(scale)


def _is_key(names: Names, sites: Sites, site: Site, key: Name) -> bool:
    if isinstance(key, nn.Module):
        return site.call is None and names.model.get_submodule(site.path) is key
    return key == sites.alias_of[site] or (site.call is None and key == site.path) or _general_key(sites, site, key)


def _general_key(sites: Sites, site: Site, key: str) -> bool:
    return (key == RESIZE or naming.is_pattern(key)) and _matches(sites, site, key)


def _sources(names: Names, sites: Sites, site: Site, guide: Any) -> tuple[str, ...]:
    """Paths of modules, and INPUT; each at least as fine as the site's output."""
    given: Sequence[Any] = list(guide) if isinstance(guide, list | tuple) else [guide]
    if not given:
        raise HotswapError(f'guide must name at least one source, got an empty list; try "{INPUT}"')
    paths: dict[str, None] = {}
    for name in given:
        path = INPUT if name in (INPUT, AUTO) else _exact(names, name, "guide")
        size = sites.image_size if path == INPUT else sites.sizes.get(path)
        if size is None:
            raise HotswapError(f"guide {path!r} must give a [B, G, H, W] map, and does not{_finer(sites, site)}")
        if not fine_enough(size, site.output_size):
            fine = site.output_size
            raise HotswapError(
                f"guide {_shown(name)} of {size[0]} x {size[1]} is coarser than the output {fine[0]} x {fine[1]} of "
                f"target {sites.alias_of[site]} ({site.name}){_finer(sites, site)}"
            )
        paths[path] = None
    return tuple(paths)


def _finer(sites: Sites, site: Site) -> str:
    """A guide that would work, as the end of a sentence."""
    if fine_enough(sites.image_size, site.output_size):
        return f'; "{INPUT}" is fine enough'
    # There is one, or the site would not be here; and the first to end is before it.
    path = next(path for path, size in sites.sizes.items() if fine_enough(size, site.output_size))
    return f"; {path!r} is fine enough"
