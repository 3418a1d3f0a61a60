"""The sizes at which an exported file is tried, and its difference from PyTorch."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hotswap.network.agreement import distance

BATCH, HEIGHT, WIDTH = 0, 2, 3
LEAST = 3  # sizes besides the example's that a file with open axes is tried at
Size = tuple[int, int, int]  # batch, height and width
# A network that downsamples may run only at sizes that differ from its example's by a multiple of its stride.
_STEPS = (2, 4, 8, 16, 14, 32, 64)
_ROUND = 32

# The largest difference from PyTorch that rounding explains, relative to the largest output: of float32 some 1000
# roundings, for sums in another order; of narrower types, whose sums are float32, those of some layers in a row.
_TOLERANCES = {torch.bfloat16: 16 * 2**-8, torch.float16: 16 * 2**-11}
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Trial:
    """Arguments of the network, and its outputs for them."""

    arguments: tuple[Any, ...]
    expected: list[Tensor]

    @property
    def size(self) -> tuple[int, ...]:
        """The size of the first input."""
        return tuple(next(x for x in self.arguments if isinstance(x, Tensor)).shape)


def is_image(x: Any) -> bool:
    """Whether an argument is one whose batch, height and width may be left open."""
    return isinstance(x, Tensor) and x.dim() == 4


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output, however they are nested."""
    return [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]


def outputs(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """The outputs of a network or a file; it gets copies of the arguments, as it may write to them."""
    return tensors(function(*pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, arguments)))


def other_sizes(model: nn.Module, arguments: tuple[Any, ...], axes: Sequence[int]) -> list[Trial]:
    """Trials at other sizes along these axes; fewer than `LEAST` where the network runs at no more.

    Odd, prime and even sizes, smaller, larger and of another shape than the example's, one of a multiple of 32, and
    other batches, one image among them. Where the network does not run at such sizes they are replaced by sizes that
    differ from the example's by a multiple of 2, of 4, and so on.
    """
    first = next((x for x in arguments if is_image(x)), None)
    if first is None or not axes:
        return []
    height, width = first.shape[HEIGHT], first.shape[WIDTH]
    trials: dict[Size, Trial] = {}

    def run(*sizes: Size) -> bool:
        new = {
            size: trial for size in sizes if size not in trials and (trial := run_at(model, arguments, axes, size))
        }
        trials.update(new)
        return bool(new)

    if HEIGHT not in axes and WIDTH not in axes:
        run(*((batch, height, width) for batch in (1, 3, 4, 5)))
        return list(trials.values())
    for smaller, larger, wider in _sizes(height, width):
        if run((1, *larger)):  # the others only where this runs: a forward takes time
            run((3, *smaller), (2, *wider))
        if len(trials) >= LEAST:
            break
    rows, columns = ((n // _ROUND + 1) * _ROUND for n in (height, width))
    run((2, rows, columns))
    return list(trials.values())


def _sizes(height: int, width: int) -> Iterator[list[tuple[int, int]]]:
    """Sizes smaller, larger and of another shape than the example: primes first, then by steps."""
    down, up = ([prime(n) for n in (height, width)] for prime in (_prime_below, _prime_above))
    lying = (min(down), max(up) // 4 * 4 + 2)
    yield [(down[0], down[1]), (up[0], up[1]), lying if width <= height else lying[::-1]]
    for step in _STEPS:
        down, up = ([n + step * _odd(more * n / step) for n in (height, width)] for more in (-0.4, 0.2))
        low = [n if n > 0 else m for n, m in zip(down, up, strict=True)]
        yield [(low[0], low[1]), (up[0], up[1]), (low[0], up[1] + 2 * step)]


def _odd(x: float) -> int:
    """The odd number nearest to x, of its sign."""
    return int(math.copysign(2 * (abs(x) // 2) + 1, x))


def _prime_below(n: int) -> int:
    return next((p for p in range(max(2, 2 * n // 3), 1, -1) if _is_prime(p)), 2)


def _prime_above(n: int) -> int:
    return next(p for p in range(n + n // 5 + 1, 4 * n + 8) if _is_prime(p))


def _is_prime(n: int) -> bool:
    return all(n % k for k in range(2, math.isqrt(n) + 1))


def run_at(model: nn.Module, arguments: tuple[Any, ...], axes: Sequence[int], size: Size) -> Trial | None:
    """A trial at a size; None where the network does not run, or its outputs are not finite."""
    others = _resized(arguments, axes, size)
    try:
        expected = outputs(model, others)
    except Exception:  # noqa: BLE001 (whatever a user's forward raises at a size it is not made for)
        return None
    return Trial(others, expected) if all(bool(y.isfinite().all()) for y in expected) else None


def _resized(arguments: tuple[Any, ...], axes: Sequence[int], size: Size) -> tuple[Any, ...]:
    """Images of another size along these axes, with the example's values in random places.

    All in the proportions of the example's: `size` is the first image's.
    """
    generator = torch.Generator().manual_seed(1)
    first = next(x for x in arguments if is_image(x))
    wanted = {axis: (n, first.shape[axis]) for axis, n in zip((BATCH, HEIGHT, WIDTH), size, strict=True)}

    def resized(x: Any) -> Any:
        if not is_image(x):
            return x
        shape = list(x.shape)
        for axis in axes:
            new, old = wanted[axis]
            shape[axis] = max(1, round(x.shape[axis] * new / old))
        return x.flatten()[torch.randint(x.numel(), shape, generator=generator)]

    return tuple(resized(x) for x in arguments)


def tolerance(model: nn.Module, arguments: tuple[Any, ...]) -> float:
    """The largest difference allowed, relative to the largest output, for the narrowest dtype."""
    held = [*model.parameters(), *model.buffers(), *(x for x in arguments if isinstance(x, Tensor))]
    return max((_TOLERANCES.get(x.dtype, TOLERANCE) for x in held), default=TOLERANCE)


def difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The distance of outputs from the expected ones: see `agreement.distance`."""
    before, after = ({f"[{place}]": x for place, x in enumerate(each)} for each in (expected, outputs))
    return distance(before, after).size
