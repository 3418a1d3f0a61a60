"""One run of a network: which modules it calls, in what order, at what sizes.

The run is on fake tensors, which costs no compute and no memory. Only where the network cannot take those, because
its forward looks at values or leaves PyTorch, is it run on numbers.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from hotswap.errors import HotswapError, one_line
from hotswap.network.graph_modules import graphs_of_modes
from hotswap.network.preserve import random_numbers_kept, untouched, written_back

DEFAULT_IMAGE_SIZE = 224
_IMAGE_CHANNELS = (1, 2, 4, 3)  # the last is the usual one
_COMPILED = "_compiled_call_impl"  # where Module.compile leaves what it makes
Inputs = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class Like:
    """The shape, dtype and device of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Given:
    """The arguments of a call, with a Like in place of each tensor."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def like(arguments: Any) -> Any:
    """Arguments with a `Like` in place of each tensor."""

    def taken(x: Any) -> Any:
        return Like(tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else x

    return pytree.tree_map(taken, arguments)


def emptied(arguments: Any) -> Any:
    """Arguments with an empty tensor in place of each `Like`."""

    def empty(x: Any) -> Any:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device) if isinstance(x, Like) else x

    return pytree.tree_map(empty, arguments)


@dataclass(frozen=True)
class Call:
    """One call of one module."""

    path: str
    input_shape: tuple[int, ...] | None  # of the first argument; None where it is no tensor
    output_shape: tuple[int, ...] | None  # None where the output is no tensor
    output_type: type
    tensors: int = 0  # number of leading tensor arguments
    given: Given | None = None  # None where tensors may be of subclasses


@dataclass(frozen=True)
class Observation:
    """The calls of one forward pass, in the order in which they ended."""

    calls: tuple[Call, ...]

    def first(self, path: str) -> Call | None:
        """The first call of the module at `path`, or None if it was not called."""
        return next((call for call in self.calls if call.path == path), None)

    def count(self, path: str) -> int:
        """How often the module at `path` was called."""
        return sum(call.path == path for call in self.calls)


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module in training or evaluation mode, and each back to its own mode afterwards."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = training
    try:
        with graphs_of_modes(model):
            yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


@contextmanager
def only_looking(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, without gradients; then restore the network and the random generators."""
    kept = (random_numbers_kept(), written_back(model.buffers()), untouched(model.modules()))
    with kept[0], kept[1], kept[2], _not_compiled(model), mode(model, training=False), torch.no_grad():
        yield


@contextmanager
def _not_compiled(model: nn.Module) -> Iterator[None]:
    """Call modules uncompiled, also after `Module.compile`: compiled code hides its calls."""
    compiled = compiled_in_place(model)
    for module in compiled:
        del vars(module)[_COMPILED]
    try:
        yield
    finally:
        for module, call in compiled.items():
            vars(module)[_COMPILED] = call


def compiled_in_place(model: nn.Module) -> dict[nn.Module, Any]:
    """The modules compiled by `Module.compile`, each with its compiled call."""
    calls = {module: vars(module).get(_COMPILED) for module in model.modules()}
    return {module: call for module, call in calls.items() if call is not None}


def as_arguments(inputs: Inputs) -> tuple[Any, ...]:
    """Positional arguments for a network: a lone tensor is the only one.

    Raises:
        HotswapError: where it is neither a tensor nor a tuple.
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, tuple | list):
        return tuple(inputs)
    raise HotswapError(f"example inputs must be a tensor or a tuple of arguments, got {type(inputs).__name__}")


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's parameters; the CPU where it has none."""
    return next((x.device for x in model.parameters()), torch.device("cpu"))


def default_inputs(model: nn.Module) -> tuple[Any, ...]:
    """Arguments to observe a network with when none are given: one image of the size it states, or 224 x 224.

    timm networks state their size in `pretrained_cfg`; elsewhere the first convolution gives the channels.

    Raises:
        HotswapError: where the network has no convolution to tell the number of channels.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise HotswapError("the network has no 2-D convolution, so there is nothing to swap")
    stated = getattr(model, "pretrained_cfg", None)
    size = stated.get("input_size") if isinstance(stated, Mapping) else None
    channels, height, width = size or (_IMAGE_CHANNELS[-1], DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE)
    # A first convolution with more channels than images have reads a rearranged one. One with fewer than timm's
    # configuration states, the pretrained weights', was made with in_chans=...
    if first.in_channels in _IMAGE_CHANNELS:
        channels = first.in_channels
    shape = (channels, height, width)
    # On the meta device: it is turned into a fake tensor, and must cost nothing before that either.
    weight = next((p for p in first.parameters()), None)
    dtype = torch.float32 if weight is None or not weight.is_floating_point() else weight.dtype
    return (torch.empty(1, *shape, dtype=dtype, device="meta"),)


def uninitialised(model: nn.Module) -> str | None:
    """The first parameter or buffer of a lazy module that has not run yet, by name: running gives it its shape."""
    named = (*model.named_parameters(), *model.named_buffers())
    return next((name for name, x in named if nn.parameter.is_lazy(x)), None)


def observe(model: nn.Module, example_inputs: Inputs | None = None) -> Observation:
    """Run `model` in evaluation mode and note every module call; neither it nor its buffers change.

    Args:
        model: the network.
        example_inputs: a tensor or a tuple of arguments, of which only shapes and dtypes matter where the network can
            run on fake tensors; by default one image (see `default_inputs`).

    Raises:
        HotswapError: where the network cannot run, with the reason.
    """
    paths = {module: path for path, module in model.named_modules()}
    calls: list[Call] = []

    plain = all(
        type(x) in (Tensor, nn.Parameter) for x in pytree.tree_leaves(example_inputs) if isinstance(x, Tensor)
    )

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        first = inputs[0] if inputs else None
        tensors = next((i for i, x in enumerate(inputs) if not isinstance(x, Tensor)), len(inputs))
        given = Given(*like((inputs, named))) if plain else None
        shapes = _shape(first), _shape(output)
        calls.append(Call(paths[module], *shapes, type(output), tensors, given))

    with removed_afterwards(m.register_forward_hook(note, with_kwargs=True) for m in paths if hookable(m)):
        run_once(model, example_inputs, calls.clear, nullcontext())
    return Observation(tuple(calls))


def hookable(module: nn.Module) -> bool:
    """Whether a module's calls can be followed by hooks."""
    return not isinstance(module, torch.jit.ScriptModule)


@contextmanager
def removed_afterwards(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks in the end, by the handles that registering them returns."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


def run_once(
    model: nn.Module,
    example_inputs: Inputs | None,
    begin: Callable[[], None],
    within: AbstractContextManager[Any],
) -> None:
    """Run `model` as `observe` does, for the sake of the hooks on it.

    Args:
        model: the network.
        example_inputs: as for `observe`.
        begin: called before each attempt: on fake tensors, then on numbers.
        within: entered for each attempt.

    Raises:
        HotswapError: as `observe`.
    """
    if (lazy := uninitialised(model)) is not None:
        raise HotswapError(f"{lazy!r} is not initialised yet, and its first run decides it: run the network once")
    arguments = default_inputs(model) if example_inputs is None else as_arguments(example_inputs)
    device = device_of(model)

    try:
        # Real parameters and buffers are read as fake ones; most writes to them (a batch norm's counts) are lost.
        with only_looking(model), on_fake_tensors(FakeTensorMode(allow_non_fake_inputs=True)):
            fakes = [_empty_like(x, device) for x in arguments]
            begin()
            with within:
                model(*fakes)
    except HotswapError:
        raise
    except Exception as error:  # noqa: BLE001 (anything a user's forward raises; told below, with its reason)
        numbers = [_numbers_like(x, device) for x in arguments]
        begin()
        try:
            with only_looking(model), within:
                model(*numbers)
        except HotswapError:
            raise
        except Exception:  # noqa: BLE001 (the run on fake tensors says why)
            shapes = ", ".join(str(list(x.shape)) if isinstance(x, Tensor) else repr(x) for x in arguments)
            raise HotswapError(
                f"the network could not be run on fake inputs {shapes} ({one_line(error, 160)}); "
                "give example_inputs, or batches to calibrate on, that its forward takes (inputs= picks them of a "
                "batch)"
            ) from error


@contextmanager
def on_fake_tensors(fake: FakeTensorMode) -> Iterator[None]:
    """Run code on fake tensors, without gradients."""
    with fake, torch.no_grad(), _quiet(), _SkipBatchNormMath():
        yield


class _SkipBatchNormMath(TorchFunctionMode):
    """Skip the decomposition of batch norm on fake tensors, which takes most of the time of a dry run."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and kwargs.get("training") is False:  # F.batch_norm itself hands it over like this
            return torch.empty_like(args[0])
        return func(*args, **kwargs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging the traceback of an error that is reported to the user in one line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _empty_like(x: Any, device: torch.device) -> Any:
    return torch.empty(x.shape, dtype=x.dtype, device=device) if isinstance(x, Tensor) else x


def _numbers_like(x: Any, device: torch.device) -> Any:
    if not isinstance(x, Tensor):
        return x
    if not x.is_meta:
        return x.to(device, copy=True)
    return torch.rand(x.shape).to(device, x.dtype)


def _shape(x: Any) -> tuple[int, ...] | None:
    return tuple(int(n) for n in x.shape) if isinstance(x, Tensor) else None
