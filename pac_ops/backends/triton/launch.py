"""Launches: what follows from the shapes of a call is worked out once, and kept for the next call of such shapes.

Through Triton's own front a launch takes 50 us of Python, of which a compiled kernel's own is 2: for a small map
cuDNN's whole convolution takes 10.
"""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator"

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

from pac_ops.backends.triton import indexing

# Under Triton's interpreter (TRITON_INTERPRET=1 when this package is imported) kernels run on CPU tensors.
INTERPRETED = not isinstance(indexing.is_in, triton.JITFunction)
NO_DEVICE = -1  # of CUDA, as `torch.cuda.device` has it: where launches are stubbed out
KEPT = 4096  # plans, of some KiB each: sizes that vary from call to call must not fill the memory
T = TypeVar("T")
Run = Callable[..., None]  # a `Launch`, or what stands for one

_traced: ContextVar[bool] = ContextVar("pac_ops_triton_traced", default=False)
PLANS: dict[Hashable, Any] = {}


@contextmanager
def traced() -> Iterator[None]:
    """In this block launches are written into the graph that `torch.compile` is tracing, and do not run."""
    token = _traced.set(True)
    try:
        yield
    finally:
        _traced.reset(token)


def is_traced() -> bool:
    """Whether launches are written into a graph."""
    return _traced.get()


def planned(make: Callable[..., T], *key: Hashable) -> T:
    """What `make` returns for a key, from which alone it follows: made once, but in every trace anew."""
    if _traced.get():
        return make(*key)
    whole = (make, key)
    plan: T | None = PLANS.get(whole)
    if plan is None:
        if len(PLANS) >= KEPT:
            PLANS.clear()
        plan = PLANS[whole] = make(*key)
    return plan


def planned_with_tensors(make: Callable[..., T], device: torch.device, *key: Hashable) -> T:
    """`planned`, of plans that hold tensors of a device, the first of the key.

    What a CUDA graph reads must live as long as the graph does, as what is allocated while it is captured does.
    """
    if device.type == "cuda" and not _traced.get() and torch.cuda.is_current_stream_capturing():
        return make(device, *key)
    return planned(make, device, *key)


class Launch:
    """A kernel with its grid and all its arguments but the tensors; called with these, it runs.

    What Triton compiles depends on the arguments, which are settled here, and on which tensors begin at a multiple of
    16 bytes. For each such set of tensors, () for all of them, the compiled kernel is kept, and launched itself.
    """

    def __init__(
        self,
        kernel: Any,
        grid: Sequence[int],
        arguments: dict[str, Any],
        device: torch.device,
        described: Callable[..., tuple[Any, ...]] | None = None,
    ):
        """Take a kernel, whose first parameters are tensors, the grid, and the others, with options of Triton's.

        `described` makes of the tensors of a call what the kernel takes in their place.
        """
        if INTERPRETED:
            arguments = {name: value for name, value in arguments.items() if not name.startswith("num_")}
        names = kernel.arg_names
        self._kernel, self._grid, self._arguments = kernel, (*grid, 1, 1)[:3], arguments
        self._given = [name for name in names if name not in arguments]
        self._others = tuple([arguments[name] for name in names[len(self._given) :]])
        self._empty = not math.prod(grid)
        self._device = device.index if device.type == "cuda" else NO_DEVICE
        self._described = described
        self._compiled: dict[tuple[bool, ...], Any] = {}

    def __call__(self, *tensors: Tensor | None, numbers: tuple[float, ...] = ()) -> None:
        """Run on these tensors, and numbers that differ from call to call: the kernel's first parameters."""
        if self._empty:
            return
        given = tensors if self._described is None else self._described(*tensors)
        if numbers:
            given += numbers
        if INTERPRETED or _traced.get():
            self._through_triton(given)
            return
        addresses = 0
        for x in tensors:
            if x is not None:
                addresses |= x.data_ptr()
        aligned = tuple([x is None or x.data_ptr() % 16 == 0 for x in tensors]) if addresses % 16 else ()
        compiled = self._compiled.get(aligned)
        if compiled is not None and (self._device == NO_DEVICE or self._device == torch.cuda.current_device()):
            self._run(compiled, given)
            return
        with torch.cuda.device(self._device):
            if compiled is None:
                self._compiled[aligned] = self._through_triton(given)
            else:
                self._run(compiled, given)

    def _run(self, compiled: Any, given: tuple[Tensor | float | None, ...]) -> None:
        """As Triton's own front ends; without what it gathers for a profiler, where there is none."""
        stream = triton.runtime.driver.active.get_current_stream(self._device)
        if _has_hooks():
            compiled[self._grid](*given, *self._others, stream=stream)
            return
        compiled.run(
            *self._grid,
            stream,
            compiled.function,
            compiled.packed_metadata,
            None,
            None,
            None,
            *given,
            *self._others,
        )

    def _through_triton(self, given: tuple[Tensor | float | None, ...]) -> Any:
        kernel = torch.library.wrap_triton(self._kernel) if _traced.get() else self._kernel
        return kernel[self._grid](**dict(zip(self._given, given, strict=True)), **self._arguments)


def _has_hooks() -> bool:
    """Whether something watches Triton's launches."""
    hooks = triton.knobs.runtime.launch_enter_hook
    return hooks is not None and bool(getattr(hooks, "calls", True))
