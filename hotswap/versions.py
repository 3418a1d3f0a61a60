"""Versions of what is installed."""

import platform
from collections.abc import Iterable
from importlib import metadata


def installed(packages: Iterable[str]) -> dict[str, str | None]:
    """Python's version, and those of packages by the names they install by; None where one is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
