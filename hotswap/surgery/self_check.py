"""Whether a swapped network computes, at guide scale 0, what the plain one does.

Every kernel of a swap is 1 there, so all that may differ is rounding. Where the numbers differ by more than rounding
in the network's own dtype should, wider copies of both networks decide, for that dtype may be coarse, and some
networks make much of little: a detector that keeps its best boxes, a label map. What modules get inside is compared
too, roughly: outputs may be all 0, and show nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hotswap.errors import HotswapError, one_line
from hotswap.network.agreement import Distance, distance, values, why_nothing
from hotswap.network.copying import deep_copy
from hotswap.network.dry_run import (
    Inputs,
    hookable,
    only_looking,
    removed_afterwards,
    uninitialised,
)
from hotswap.network.example import with_numbers
from hotswap.targets.guided_layer import GuidedLayer
from hotswap.targets.output import Refined

# What rounding may do to outputs, in units of the last place of the largest: it is below a tenth of this in networks
# of a hundred layers.
_UNITS = 128
# A float64 copy is held to this instead: parts of it may go on in float32, as norms and position embeddings do.
_BOUND_OF_FLOAT64 = 1e-5
_REACTION = 10  # times what a change of the input's last bits does to the outputs may be rounding too
_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
_MOST_NOISE = 1e-2  # relative: what changes an input by more is not like rounding
_INSIDE = 100  # times what outputs may differ by, the inputs of modules may: norms subtract much from much
_SAMPLE = 1000  # values of each such input are compared
_LARGE = 64  # pixels: from there on the second size is smaller than the first


class DiffersError(HotswapError):
    """The swapped network computes something else than the plain one."""


class _Seen(NamedTuple):
    """The values seen in one run, by their places."""

    outputs: dict[str, Any]
    inside: dict[str, Tensor]  # some values of what modules get

    def gap(self, other: "_Seen") -> Distance:
        """The distance to another run; modules that only one of them calls do not count."""
        outputs, common = distance(self.outputs, other.outputs), self.inside.keys() & other.inside.keys()
        inside = distance(
            *({where: x for where, x in seen.inside.items() if where in common} for seen in (self, other))
        )
        return max(outputs, inside._replace(size=inside.size / _INSIDE), key=lambda gap: gap.size)


class _Run(NamedTuple):
    arguments: tuple[Any, ...]
    seen: _Seen


class SelfCheck:
    """The outputs of the plain network, computed once, with which swapped copies are compared.

    Nothing of the network changes: no buffer, cache or mode, nor the generators of random numbers.

    Args:
        plain: the network, not swapped.
        inputs: a tensor or a tuple of arguments; None for an image of random numbers.
    """

    def __init__(self, plain: nn.Module, inputs: Inputs | None) -> None:
        self.plain, self.inputs = plain, inputs
        self._runs: list[_Run] | None = None
        self._why_not: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for people: what could not be compared, and why."""
        return () if self._why_not is None else (f"not compared with the plain network: {self._why_not}",)

    def compare(self, swapped: nn.Module) -> None:
        """Run a swapped copy that shares the plain network's weights, after setting its guide scales to 0.

        Raises:
            DiffersError: where it gives other numbers than rounding explains.
        """
        for module in list(swapped.modules()):
            if isinstance(module, GuidedLayer | Refined):
                module.neutralise()
        if self._runs is None:
            self._runs, self._why_not = _runs(self.plain, self.inputs)
        for run in self._runs:
            self._why_not = _check(self.plain, swapped, run) or self._why_not


def _runs(plain: nn.Module, inputs: Inputs | None) -> tuple[list[_Run], str | None]:
    """Run the plain network on its inputs, and at another size; or say why there is nothing to compare."""
    if why_not := _why_not_run(plain):
        return [], why_not
    try:
        arguments = with_numbers(plain, inputs)
        first = _Run(arguments, _seen(plain, arguments))
    except Exception as error:  # noqa: BLE001 (whatever the user's code raises on such inputs: told in a note)
        return [], f"it does not run on the inputs at hand ({one_line(error, 160)})"
    if why_not := why_nothing(first.seen.outputs):
        return [], why_not
    other = _at_another_size(arguments)
    if other is None:
        return [first], None
    try:
        return [first, _Run(other, _seen(plain, other))], None
    except Exception:  # noqa: BLE001 (it is made for one size, or for some)
        return [first], None


def _why_not_run(plain: nn.Module) -> str | None:
    if (lazy := uninitialised(plain)) is not None:
        return f"{lazy!r} is not initialised yet"
    for name, x in (*plain.named_parameters(), *plain.named_buffers()):
        if x.is_meta or isinstance(x, FakeTensor):
            return f"{name!r} has no values"
        if hasattr(x, "device_mesh"):
            return f"{name!r} is spread over several processes"
    return None


def _seen(model: nn.Module, arguments: Sequence[Any]) -> _Seen:
    copies = [x.clone() if isinstance(x, Tensor) else deepcopy(x) for x in arguments]
    with only_looking(model), _watched(model) as inside:
        return _Seen(values(model(*copies)), inside)


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The inputs of modules while a network runs; those of containers are seen inside them."""
    inside: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def watch(module: nn.Module, args: Collection[Any], kwargs: dict[str, Any]) -> None:
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if torch._C._are_functorch_transforms_active():  # whose tensors mean nothing once it has ended
            return
        if x is not None and x.is_floating_point() and x.layout is torch.strided:
            path = paths[module]
            calls[path] += 1
            flat = x.detach().as_subclass(Tensor).reshape(-1)
            inside[f"the input of {path!r}, call {calls[path]}"] = flat[:: flat.numel() // _SAMPLE + 1].clone()

    paths = {module: path for path, module in model.named_modules() if next(module.children(), None) is None}
    with removed_afterwards(m.register_forward_pre_hook(watch, with_kwargs=True) for m in paths if hookable(m)):
        yield inside


def _at_another_size(arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The arguments with images of an odd size, smaller where they are large."""
    images = [x for x in arguments if isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()]
    if not images or min(images[0].shape[2:]) < 2:
        return None
    height, width = images[0].shape[2:]
    factors = (5 / 8, 3 / 4) if min(height, width) >= _LARGE else (5 / 4, 3 / 2)
    size = int(height * factors[0]) | 1, int(width * factors[1]) | 1

    def resized(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.shape[2:] != (height, width) or not x.is_floating_point():
            return x
        return nn.functional.interpolate(x, size, mode="bilinear")

    return tuple(resized(x) for x in arguments)


# --- is it rounding? ------------------------------------------------------------------------------------------


def _check(plain: nn.Module, swapped: nn.Module, run: _Run) -> str | None:
    """Compare one run; returns why it says nothing, or None.

    Raises:
        DiffersError: where the outputs differ by more than rounding.
    """
    gap = run.seen.gap(_seen_of(swapped, run.arguments))
    dtypes = {x.dtype for x in plain.parameters()} & {*_WIDER, torch.float64}
    dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    if dtype.itemsize >= torch.float32.itemsize and gap.size <= _bound(dtype):
        return None
    differs = DiffersError(f"it does not compute what the plain one does: {gap.text}")
    # A wider copy alone could not tell: code may do something else in another dtype.
    if gap.size > _bound(dtype) and not _explained(plain, run, gap):
        raise differs
    while dtype in _WIDER:
        dtype = _WIDER[dtype]
        try:
            wide = _widened(plain, swapped, run.arguments, dtype)
        except Exception:  # noqa: BLE001 (there are networks that run in no other dtype)
            break
        if wide.gap.size <= _bound(dtype):
            return None
        if dtype not in _WIDER and not _explained(wide.plain, wide.run, wide.gap):
            raise differs
    return f"its outputs change as much by rounding alone ({gap.text})"


def _seen_of(swapped: nn.Module, arguments: Sequence[Any]) -> _Seen:
    try:
        return _seen(swapped, arguments)
    except HotswapError:
        raise
    except Exception as error:  # whatever the code of the user's network raises
        sizes = ", ".join(str(list(x.shape)) for x in arguments if isinstance(x, Tensor))
        raise DiffersError(
            f"it fails on inputs {sizes}, which the plain one takes ({one_line(error, 160)})"
        ) from error


def _bound(dtype: torch.dtype) -> float:
    return _BOUND_OF_FLOAT64 if dtype is torch.float64 else _UNITS * torch.finfo(dtype).eps


class _Wide(NamedTuple):
    plain: nn.Module
    run: _Run
    gap: Distance


def _widened(plain: nn.Module, swapped: nn.Module, arguments: Sequence[Any], dtype: torch.dtype) -> _Wide:
    """The distance between copies of both networks in a wider dtype."""

    def wide(x: Any) -> Any:
        return x.detach().to(dtype) if isinstance(x, Tensor) and x.dtype in _WIDER else x

    memo: dict[int, Any] = {}
    for model in (plain, swapped):
        for module in model.modules():
            for held in (module._parameters, module._buffers, vars(module)):
                for x in held.values():
                    if isinstance(x, Tensor) and id(x) not in memo and x.dtype in _WIDER:
                        memo[id(x)] = (
                            nn.Parameter(wide(x), x.requires_grad) if isinstance(x, nn.Parameter) else wide(x)
                        )
    plain, swapped = deep_copy(plain, memo), deep_copy(swapped, memo)
    arguments = tuple(wide(x) for x in arguments)
    run = _Run(arguments, _seen(plain, arguments))
    return _Wide(plain, run, run.seen.gap(_seen(swapped, arguments)))


def _explained(plain: nn.Module, run: _Run, gap: Distance) -> bool:
    """Whether a change of the inputs as small as rounding changes the plain outputs as much."""
    units = [_unit(x) for x in run.arguments if isinstance(x, Tensor) and x.is_floating_point()]
    for noise in (4, 32, 256):
        if noise > 4 and noise * max(units, default=0.0) > _MOST_NOISE:
            return False
        for seed in range(2):
            changed = _changed(run.arguments, noise, seed)
            try:
                reaction = run.seen.gap(_seen(plain, changed)).size
            except Exception:  # noqa: BLE001, S112 (it does not run on this: no answer)
                continue
            if gap.size <= _REACTION * reaction:
                return True
    return False


def _changed(arguments: Sequence[Any], noise: float, seed: int) -> list[Any]:
    """Inputs with noise, in units of their last place."""
    generator = torch.Generator().manual_seed(seed)

    def changed(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        factor = 1 + noise * _unit(x) * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return (x.double().cpu() * factor).to(x.device, x.dtype)

    return [changed(x) for x in arguments]


def _unit(x: Tensor) -> float:
    """The unit in the last place; for float32 on GPUs, that of TF32."""
    tf32 = x.is_cuda and x.dtype is torch.float32
    return 2.0**-11 if tf32 else torch.finfo(x.dtype).eps
