"""The result of a search as one HTML file."""

import hotswap
from hotswap.files.atomic import PathLike, atomic_write
from hotswap.reporting.page import filled
from hotswap.searching.result import SearchResult, sizes_text


def write(result: SearchResult, network: str, path: PathLike) -> None:
    """Write a page with the sentence, the tables and pictures; what was there is replaced.

    Raises:
        HotswapError: where it cannot be written.
    """
    text = filled(
        "search.html", r=result, network=network, sizes=sizes_text(result.sizes), version=hotswap.__version__
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(text)
