"""Enlargements that cannot be targets: learned ones, and those that run after the network."""

from hotswap.targets.output import GUIDED_OUTPUT
from hotswap.targets.sites import VALUES, Sites

_FEW = 3  # that are listed by name


def elsewhere(sites: Sites) -> list[str]:
    """What is said of them: nothing, where there are none."""
    return [*_learned(sites), *_afterwards(sites)]


def _learned(sites: Sites) -> list[str]:
    if not sites.learned:
        return []
    by_kind: dict[str, list[str]] = {}
    for path, kind in sites.learned.items():
        by_kind.setdefault(kind, []).append(path or "its own forward")
    kinds = (f"{kind} ({', '.join(names[:_FEW])}{', ...' * (len(names) > _FEW)})" for kind, names in by_kind.items())
    return [f"the network enlarges by {' and by '.join(kinds)}: that is learned, and not guided"]


def behind(sites: Sites) -> list[str]:
    """What is said of scores at about the image's size."""
    return [f'"{GUIDED_OUTPUT}" guides the scores that it ends with'] if _is_fine(sites) else []


def gives_scores(sites: Sites) -> bool:
    """Whether the network gives scores of classes at about the image's size, and not a map of values."""
    return _is_fine(sites) and sites.output_channels > VALUES


def _afterwards(sites: Sites) -> list[str]:
    """Where the network's own output is coarser than the image."""
    fine, coarse = sites.image_size, sites.output_size
    if fine is None or coarse is None or not _is_coarse(sites):
        return []
    sizes = f"{coarse[0]} x {coarse[1]}, of an image of {fine[0]} x {fine[1]}"
    advice = "what enlarges it runs after the network, and hotswap.enlarge(output, image) is what guides that"
    return [f"the network's output is {sizes}: {advice}"]


def _is_fine(sites: Sites) -> bool:
    fine, coarse = sites.image_size, sites.output_size
    if fine is None or coarse is None or max(coarse) == 1 or _is_coarse(sites):
        return False
    return all(n <= m for n, m in zip(coarse, fine, strict=True))  # not an enlarged image, say


def _is_coarse(sites: Sites) -> bool:
    fine, coarse = sites.image_size, sites.output_size
    if fine is None or coarse is None or max(coarse) == 1:
        return False
    return all(2 * n <= m for n, m in zip(coarse, fine, strict=True))
