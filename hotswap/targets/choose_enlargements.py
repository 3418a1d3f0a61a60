"""Picks the enlargements among the targets, and finds their guides."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hotswap.errors import HotswapError
from hotswap.network.names import INPUT, closest, is_pattern, match
from hotswap.targets.choose import Chosen, by_target, is_general, scale, usable
from hotswap.targets.considered import Considered
from hotswap.targets.elsewhere import behind, elsewhere
from hotswap.targets.enlargement import mode_of
from hotswap.targets.entries import Footprint, why_not_guided
from hotswap.targets.lookup import Name, Names, shown
from hotswap.targets.sites import ALIAS, Site, Sites, fine_enough
from hotswap.targets.verdicts import EVERY, factor, in_short, row, verdict

_FEW = 4  # names that a message lists without leaving some out
RESIZE = "resize"  # as a target: the enlargements that guiding helps


@dataclass(frozen=True)
class SplitRequest:
    """A request taken apart: the enlargements, and the rest, for the convolutions."""

    enlargements: tuple[Chosen, ...]
    others: tuple[Name, ...]
    guide: Any
    guide_scale: Any
    notes: tuple[str, ...] = ()
    considered: tuple[Considered, ...] = ()


def split(
    names: Names,
    wanted: Sequence[Name],
    guide: Any,
    guide_scale: Any,
    footprint: Footprint,
    find: Callable[[], Sites],
) -> SplitRequest:
    """Tell enlargements from convolutions in `wanted`, and in `guide` and `guide_scale` where they are mappings.

    An enlargement is named by "resize" (those that guiding helps: see `verdict`), by its alias `resize_{i}` or a
    pattern over these, or, where it is a module, by that or its path. A pattern that matches no convolution is tried
    on these paths, and "resize_*" always. `find` finds them.

    Raises:
        HotswapError: where one that was named cannot be guided, or its guide is too coarse, with what would work.
    """
    if not any(_may_enlarge(names, name) for name in wanted):
        return SplitRequest((), tuple(wanted), guide, guide_scale)
    if names.observation is None:
        raise HotswapError(
            f"enlargements are found in one run of the network on fake inputs, and {names.why_unobserved}"
        )
    sites = find()
    convolutions: list[Name] = []
    taken: dict[Site, None] = {}  # an ordered set
    notes: list[str] = []
    for name in wanted:
        if _may_enlarge(names, name):
            taken |= dict.fromkeys(_named(names, sites, name, footprint, notes))
        else:
            convolutions.append(name)
    notes += elsewhere(sites)
    if left := [site for site in taken if not verdict(site, footprint).taken]:
        notes.append(f'"{RESIZE}" would leave {_listed(sites, left, footprint)}')
    alone = not convolutions
    guides, other_guides = _per_site(names, sites, "guide", guide, taken, footprint, alone=alone)
    scales, other_scales = _per_site(names, sites, "guide_scale", guide_scale, taken, footprint, alone=alone)
    chosen = tuple(
        Chosen(s.path, s, sites.alias_of[s], _sources(names, sites, s, guides[s]), scale(scales[s])) for s in taken
    )
    considered = tuple(row(site, alias, footprint) for alias, site in sites.by_alias.items() if factor(site) > 1)
    return SplitRequest(chosen, tuple(convolutions), other_guides, other_scales, tuple(notes), considered)


def _may_enlarge(names: Names, name: Any) -> bool:
    if isinstance(name, nn.Module):
        return not isinstance(name, nn.Conv2d) and mode_of(name) is not None
    if not isinstance(name, str):
        return False
    modules = dict(names.model.named_modules())
    if name in modules and name:
        return mode_of(modules[name]) is not None
    if name == EVERY:
        return True
    if is_pattern(name):
        layers = (nn.Conv2d, nn.ConvTranspose2d)
        convolutions = [path for path, m in modules.items() if isinstance(m, layers) and mode_of(m) is None]
        return not match(name, convolutions, names.alias_of)
    return name == RESIZE or name.startswith(f"{ALIAS}_")


def _named(names: Names, sites: Sites, name: Name, footprint: Footprint, notes: list[str]) -> list[Site]:
    """The enlargements that a target names."""

    def why_not(site: Site) -> str | None:
        return site.why_not or why_not_guided(site.mode, footprint)

    modules = dict(names.model.named_modules())
    if name == RESIZE and name not in modules:
        return _helped(sites, footprint, notes)
    if isinstance(name, str) and is_pattern(name):
        matched = [site for site in sites if _matches(sites, site, name, footprint)]
        try:
            return usable(name, matched, why_not, lambda site: site.name, "no convolution or enlargement", notes)
        except HotswapError as error:
            raise HotswapError("; ".join([str(error), *elsewhere(sites)])) from None
    site = sites.by_alias.get(name) if isinstance(name, str) else None
    if site is None:
        if isinstance(name, str) and name not in modules:
            close = closest(name, sites.by_alias)
            raise HotswapError(f"target {name!r} is none of the network's resizes{close} (hotswap.inspect lists all)")
        path = names.path(name, "target")
        site = next((s for s in sites if s.path == path and s.call is None), None)
        if site is None:
            raise HotswapError(f"target {path!r} cannot be swapped: the network never calls it with a map")
    if refusal := why_not(site):
        raise HotswapError(f"target {shown(name)} cannot be swapped: {refusal}")
    return [site]


def _helped(sites: Sites, footprint: Footprint, notes: list[str]) -> list[Site]:
    """The enlargements that guiding helps; a note names those that are left.

    Raises:
        HotswapError: where there are none, with the verdict on each.
    """
    by_reason: dict[str, list[Site]] = {}
    for site in sites:
        if (decided := verdict(site, footprint)).taken:
            by_reason.setdefault(decided.reason, []).append(site)
    taken = [site for site in sites if any(site in alike for alike in by_reason.values())]
    left = _listed(sites, [site for site in sites if site not in taken], footprint)
    every = f'"{EVERY}" takes all that can be guided'
    if not taken:
        refused = (
            f'"{RESIZE}" takes nothing, as the network enlarges no map by interpolation (hotswap.inspect says more)'
        )
        if left:
            advice = f", but {every}" if any(site.why_not is None for site in sites) else ""
            refused = f'"{RESIZE}" takes no enlargement here{advice}: {left}'
        raise HotswapError("; ".join([f"target {refused}", *elsewhere(sites), *behind(sites)]))
    for reason, alike in by_reason.items():
        notes.append(f'"{RESIZE}" takes {_listed(sites, alike, footprint)}: {reason}')
    if left:
        notes.append(f'"{RESIZE}" leaves {left}; {every}')
    return taken


def _listed(sites: Sites, chosen: Iterable[Site], footprint: Footprint) -> str:
    """Sites as messages list them, those of which the same is said together, but for any that do not enlarge."""
    alike: dict[str, list[str]] = {}
    listed = list(chosen)
    for site in [site for site in listed if factor(site) > 1] or listed:
        alike.setdefault(in_short(site, footprint), []).append(sites.alias_of[site])
    return ", ".join(f"{_together(aliases)} ({said})" for said, aliases in alike.items())


def _together(aliases: Sequence[str]) -> str:
    return ", ".join(aliases) if len(aliases) <= _FEW else f"{', '.join(aliases[:2])}, ... {aliases[-1]}"


def _matches(sites: Sites, site: Site, name: str, footprint: Footprint) -> bool:
    if name == RESIZE:
        return verdict(site, footprint).taken
    keys = [sites.alias_of[site]] + ([site.path] if site.call is None else [])
    return bool(match(name, keys, {}))


# --- guides ---------------------------------------------------------------------------------------------------


def _per_site(
    names: Names, sites: Sites, what: str, value: Any, chosen: Iterable[Site], footprint: Footprint, *, alone: bool
) -> tuple[dict[Site, Any], Any]:
    """The value of each enlargement, and the rest of a mapping, for the convolutions."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(chosen, value), value

    def matched(key: Any) -> list[Site]:
        if not _may_enlarge(names, key):
            return []
        return [site for site in chosen if _is_key(names, sites, site, key, footprint)]

    labels = {site: f"{sites.alias_of[site]} ({site.name})" for site in chosen}
    return by_target(what, value, labels, matched, RESIZE, others_too=not alone)


def _is_key(names: Names, sites: Sites, site: Site, key: Name, footprint: Footprint) -> bool:
    if isinstance(key, nn.Module):
        return site.call is None and names.model.get_submodule(site.path) is key
    if key == sites.alias_of[site] or (site.call is None and key == site.path):
        return True
    return is_general(key, RESIZE) and _matches(sites, site, key, footprint)


def _sources(names: Names, sites: Sites, site: Site, guide: Any) -> tuple[str, ...]:
    """The sources of a guide: module paths and INPUT, each at least as fine as the output of the site."""
    paths = names.sources(guide, lambda: INPUT, INPUT)
    for path, name in paths.items():
        size = sites.image_size if path == INPUT else sites.sizes.get(path)
        if size is None:
            raise HotswapError(f"guide {path!r} must give a [B, G, H, W] map, and does not{_finer(sites, site)}")
        if not fine_enough(size, site.output_size):
            fine = site.output_size
            raise HotswapError(
                f"guide {shown(name)} of {size[0]} x {size[1]} is coarser than the output {fine[0]} x "
                f"{fine[1]} of target {sites.alias_of[site]} ({site.name}){_finer(sites, site)}"
            )
    return tuple(paths)


def _finer(sites: Sites, site: Site) -> str:
    """A guide that would work, as the end of a sentence."""
    if fine_enough(sites.image_size, site.output_size):
        return f'; "{INPUT}" is fine enough'
    # There is one, or the site would not be here; and the first to end is before it.
    path = next(path for path, size in sites.sizes.items() if fine_enough(size, site.output_size))
    return f"; {path!r} is fine enough"
