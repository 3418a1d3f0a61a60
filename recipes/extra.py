"""The extra `recipes`: whether the packages that every recipe needs are installed."""

import importlib.util

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
