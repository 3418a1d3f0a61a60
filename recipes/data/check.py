"""Check the files of a data set before a long run."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch.utils.data import Dataset

from hotswap.errors import HotswapError
from recipes.data import nyu, sintel, voc
from recipes.data.files import PathLike
from recipes.datasets import length

_SHOWN = 20  # problems; the JSON has all


@dataclass(frozen=True)
class Split:
    """A split, with its expected and actual number of items."""

    name: str
    expected: int
    found: int


@dataclass(frozen=True)
class Report:
    """The splits and the problems of a data set."""

    dataset: str
    root: str
    splits: tuple[Split, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.dataset} in {self.root}"]
        lines += [f"  {split.name}: {split.found} of {split.expected} items" for split in self.splits]
        lines += self.problems[:_SHOWN]
        hidden = len(self.problems) - _SHOWN
        lines += [f"and {hidden} more; --json lists all"] if hidden > 0 else []
        return "\n".join([*lines, f"{len(self.problems)} problems" if self.problems else "everything is there"])


@dataclass
class _Kind:
    make: Callable[[PathLike, Any], Dataset[Any]]  # reading an item raises HotswapError where a file is damaged
    sizes: dict[str, int]  # how many items each split must have


KINDS = {
    "voc": _Kind(voc.VocSbd, voc.SIZES),
    "nyu": _Kind(nyu.NyuDepth, {"train": nyu.TRAIN, "test": nyu.COUNT - nyu.TRAIN}),
    "sintel": _Kind(sintel.SintelFlow, sintel.SIZES),
}


def check(
    name: str,
    root: PathLike,
    progress: Callable[[Iterable[int], int, str], Iterable[int]] | None = None,
) -> Report:
    """Read every file of a data set.

    Args:
        name: "voc", "nyu" or "sintel".
        root: where it lies; see docs/data.md.
        progress: is given what to go through, how many that are and what they are, and returns the same.

    Raises:
        HotswapError: where there is no data set of that name.
    """
    if name not in KINDS:
        raise HotswapError(f"data set must be one of {', '.join(KINDS)}, got {name!r}")
    splits: list[Split] = []
    problems: dict[str, None] = {}  # in order, without repetition: a file that all items need is one problem
    for split, expected in KINDS[name].sizes.items():
        dataset = KINDS[name].make(root, split)
        try:
            count = length(dataset)
        except HotswapError as error:
            splits.append(Split(split, expected, 0))
            problems[str(error)] = None
            continue
        good = 0
        for index in range(count) if progress is None else progress(range(count), count, f"{name} {split}"):
            try:
                dataset[index]
                good += 1
            except HotswapError as error:
                problems[str(error)] = None
        splits.append(Split(split, expected, good))
        if count != expected:
            problems[f"{name} {split} must list {expected} items, got {count}"] = None
    return Report(name, str(root), tuple(splits), tuple(problems))
