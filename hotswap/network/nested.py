"""Values in sequences, mappings and dataclasses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def parts(x: Any) -> list[tuple[str, Any]] | None:
    """What a container holds, each with its place as code has it: `[0]`, `['key']`, `.field`; None for all else."""
    if isinstance(x, Mapping):
        return [(f"[{key!r}]", item) for key, item in x.items()]
    if isinstance(x, Sequence) and not isinstance(x, str | bytes):
        return [(f"[{index}]", item) for index, item in enumerate(x)]
    if is_dataclass(x) and not isinstance(x, type):
        return [(f".{field.name}", getattr(x, field.name, None)) for field in fields(x)]
    return None


def tensors_in(x: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and mappings."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list | Mapping):
        for item in x.values() if isinstance(x, Mapping) else x:
            yield from tensors_in(item)
