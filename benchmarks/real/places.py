"""Where the real data and networks lie: beside the project, as licences do not let them be part of it."""

from pathlib import Path

from hotswap.errors import HotswapError

SHARED = Path(__file__).parents[3] / "shared"


def shared(path: str) -> Path:
    """A file or folder of `shared`.

    Raises:
        HotswapError: where it is missing.
    """
    place = SHARED / path
    if not place.exists():
        raise HotswapError(f"these experiments need shared/{path} beside the project, which is not there")
    return place
