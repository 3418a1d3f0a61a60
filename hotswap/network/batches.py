"""The arguments that a network gets from the batches of a data loader."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from hotswap.errors import HotswapError, one_line
from hotswap.network.dry_run import Inputs

Batch = Inputs | Mapping[str, Any] | Sequence[Any]
Batches = Iterable[Batch] | Tensor
Pick = Callable[[Any], Batch]


def as_batches(model: nn.Module, batches: Batches, inputs: Pick | None = None) -> Iterator[tuple[Any, ...]]:
    """Arguments for a network, one batch after another.

    Args:
        model: the network, whose forward says what it takes.
        batches: a lone tensor is one batch. Of a tuple or list, such as (image, label), the first entries are taken,
            as many as forward has arguments; of a mapping those whose names are arguments of forward.
        inputs: what the network gets of a batch: called with it, gives one of the same kinds.

    Yields:
        Positional arguments.

    Raises:
        HotswapError: where there is no batch, or one does not hold what the network takes.
    """
    if not isinstance(batches, Iterable):
        raise HotswapError(
            f"batches must be a tensor, or several tensors, tuples or mappings, got {type(batches).__name__}; a "
            "Dataset goes through a torch.utils.data.DataLoader"
        )
    takes = _parameters(model)
    empty = True
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        empty = False
        yield _arguments(batch if inputs is None else _picked(batch, inputs), takes)
    if empty:
        raise HotswapError("batches must hold at least one batch of inputs, got none")


def _picked(batch: Any, inputs: Pick) -> Batch:
    try:
        return inputs(batch)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise HotswapError(f"inputs fails on a batch that is {_described(batch)} ({one_line(error)})") from error


def _arguments(batch: Any, takes: list[inspect.Parameter] | None) -> tuple[Any, ...]:
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, Mapping):
        return _by_name(batch, takes or [])
    if not isinstance(batch, tuple | list):
        raise HotswapError(
            f"a batch must be a tensor, a tuple or a mapping, got {type(batch).__name__}; give inputs, a function "
            "that picks what the network gets of one"
        )
    return tuple(batch if takes is None else batch[: len(takes)])


def _by_name(batch: Mapping[str, Any], takes: list[inspect.Parameter]) -> tuple[Any, ...]:
    """The entries that forward names, up to the last one present; missing ones before it take their defaults."""
    count = max((index for index, parameter in enumerate(takes, start=1) if parameter.name in batch), default=0)
    given = [batch.get(parameter.name, parameter.default) for parameter in takes[:count]]
    needed = [p.name for p in takes if p.default is p.empty and p.name not in batch]
    if needed or not given:
        names = ", ".join(repr(parameter.name) for parameter in takes) or "unnamed"
        key = next(iter(batch), "image")
        raise HotswapError(
            f"a batch is {_described(batch)}, and the arguments of the network's forward are {names}; give inputs, "
            f"a function that picks what the network gets, such as inputs=lambda batch: batch[{key!r}]"
        )
    return tuple(given)


def _parameters(model: nn.Module) -> list[inspect.Parameter] | None:
    """The positional parameters of a network's forward; None where it takes any number.

    Raises:
        HotswapError: where it takes some by keyword alone.
    """
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # of code that is not Python's
        return None
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    if alone := [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]:
        raise HotswapError(
            f"the network's forward takes {alone[0]!r} by keyword alone, and hotswap gives arguments by position; "
            f"take away the * before {alone[0]!r}, which who calls it by keyword does not notice"
        )
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _described(batch: Any) -> str:
    """A batch in a few words, for people."""
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(map(repr, list(batch)[:5])) or 'nothing'}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"


class KnownInputs:
    """Inputs to run a network on: the given example, and real data, read when it is needed."""

    def __init__(self, given: Inputs | None, data: Iterable[tuple[Any, ...]] = ()) -> None:
        self.given, self._data = given, data

    @cached_property
    def batches(self) -> tuple[tuple[Any, ...], ...]:
        """All batches of the data; an iterator gives them only once."""
        return tuple(self._data)

    def images(self) -> list[Any]:
        """The first argument of each batch of the data."""
        return [batch[0] for batch in self.batches if batch]

    @property
    def example(self) -> Inputs | None:
        """Inputs for the dry run."""
        return self.batches[0] if self.given is None and self.batches else self.given

    @property
    def numbers(self) -> Inputs | None:
        """Inputs to compare outputs on: real data first."""
        return self.batches[0] if self.batches else self.given
