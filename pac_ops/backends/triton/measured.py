"""Tiles that were the fastest on a GPU, as `winners` reads them. Written by `python -m benchmarks.gpu_results`."""

CHIP: tuple[int, int, int] | None = None  # compute capability and multiprocessors
MEASURED: dict[tuple[str, str, bool, int, int, int], tuple[int, ...]] = {}
