"""What the target "resize" takes, and why."""

from typing import NamedTuple

from hotswap.targets.considered import Considered
from hotswap.targets.dataflow import Kind
from hotswap.targets.entries import Footprint, why_not_guided
from hotswap.targets.sites import Site

EVERY = "resize_*"  # as a target: every enlargement that can be guided
_MODERATE = 3  # from this factor on there is much to gain


class Verdict(NamedTuple):
    """Whether "resize" takes an enlargement, and the reason."""

    taken: bool
    reason: str

    def __str__(self) -> str:
        """The verdict as tables have it."""
        return f"{'taken' if self.taken else 'left'}: {self.reason}"


def factor(site: Site) -> float:
    """How often a map is enlarged, over all enlargements in a row."""
    if site.place is not None:
        return site.place.factor
    return min(fine / coarse for fine, coarse in zip(site.output_size, site.input_size, strict=True))


def place(site: Site) -> str:
    """What is enlarged, in a few words; empty where nothing is."""
    if site.place is None:
        return "unknown: no output is seen to depend on it" if factor(site) > 1 else ""
    return {
        Kind.SCORES: "scores",
        Kind.MIXED: f"mixed with a finer map: {site.place.by}",
        Kind.FEATURES: f"features: {site.place.by} follows",
        Kind.UNKNOWN: f"unknown: {site.place.by} follows",
    }[site.place.kind]


def in_short(site: Site, footprint: Footprint) -> str:
    """Factor and place; where neither counts, why it cannot be guided."""
    kind, steps = (Kind.UNKNOWN, 1) if site.place is None else (site.place.kind, site.place.steps)
    why_not = site.why_not or (why_not_guided(site.mode, footprint) if kind is Kind.SCORES else None)
    if why_not is not None:
        return f"{times(factor(site))}, cannot be guided: {why_not}"
    row = f" in {steps} steps" if steps > 1 and kind is Kind.SCORES else ""
    return f"{times(factor(site))}{row}, {place(site)}"


def times(factor: float) -> str:
    """A factor as people write it."""
    return f"x{factor:.2g}" if factor < 1 else f"x{factor:.1f}".removesuffix(".0")


def verdict(site: Site, footprint: Footprint) -> Verdict:
    """What becomes of an enlargement where "resize" is the target.

    Measured before any training: scores enlarged by 8 gained 2 to 7 points of IoU, by 4 1.5, by 2 from 0 to 0.5;
    where all steps of a decoder were guided, those of features among them, 0.3 to 3.5 points were lost.
    """
    if site.why_not is not None:
        return Verdict(False, f"it cannot be guided: {site.why_not}")
    if site.place is None or site.place.kind is Kind.UNKNOWN:
        return Verdict(False, "what follows is not known, and guiding features did harm")
    if site.place.kind is Kind.FEATURES:
        return Verdict(False, "guiding enlargements of features did harm (-0.3 to -3.5 points)")
    if site.place.kind is Kind.MIXED:
        return Verdict(False, "the map put to it is finer, and edges come from there")
    if not _doubled(site):
        return Verdict(False, "the factor is below 2")
    if (reason := why_not_guided(site.mode, footprint)) is not None:
        return Verdict(False, f"it cannot be guided: {reason}")
    if factor(site) < _MODERATE:
        return Verdict(True, "by so small a factor little is gained as a rule (0 to +0.5 points)")
    return Verdict(True, "nothing but pointwise operations follow")


def row(site: Site, alias: str, footprint: Footprint) -> Considered:
    """What a plan's table says of an enlargement."""
    decided = verdict(site, footprint)
    n = factor(site)
    return Considered(alias, site.name, times(n), n, place(site), decided.taken, str(decided))


def _doubled(site: Site) -> bool:
    """Whether a map is enlarged by 2 or more along both axes; an odd size was rounded up when it was halved."""
    place = site.place
    return place is not None and all(f >= 2 * c - 1 for f, c in zip(place.end, place.start, strict=True))
