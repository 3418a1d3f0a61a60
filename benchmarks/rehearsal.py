"""`gpu_check` without a GPU: all of its code on the CPU, small, with launches stubbed out.

Plans, grids and arguments are the Triton backend's own; a launch does nothing, and what it would have written is
taken from the reference. `torch.cuda`'s functions are stand-ins that take what the real ones take, and no more.
"""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found"

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial, wraps
from typing import Any
from unittest import mock

import torch
import triton

from benchmarks import (
    crf,
    gpu,
    gpu_correct,
    gpu_stages,
    gpu_tiles,
    harness,
    launching,
    limits,
    networks,
    operators,
    resizing,
)
from benchmarks.harness import Workload
from benchmarks.stubbed import stubbed
from pac_ops.backends import choose
from pac_ops.functional.weights import guided_weights
from recipes.networks import fcn8s
from recipes.networks.fcn8s import FCN8s

MS = 4.0  # what everything takes
DEVICE = "no GPU, rehearsed"
# In place of the tables: one of each kind of workload.
TABLE = [
    Workload(1, 16, 6),
    Workload(8, 16, 4, stride=2),
    Workload(1, 3, 5, window=5, dilation=2, groups=3),
]


def _bound(real: Callable[..., Any], stand_in: Callable[..., Any]) -> Callable[..., Any]:
    """The stand-in, which refuses arguments that the real function does not take."""
    signature = inspect.signature(real)

    @wraps(real)
    def run(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return stand_in(*args, **kwargs)

    return run


def _class(real: type, **methods: Callable[..., Any]) -> type:
    """A class with these methods of a real one's, which all take what the real ones take."""
    makers = [maker for maker in (real.__init__, real.__new__) if inspect.isfunction(maker)]  # type: ignore[misc]
    body = {name: _bound(getattr(real, name), method) for name, method in methods.items()}
    return type(real.__name__, (), {"__init__": _bound(makers[0], _nothing), **body})


def _context(self: Any) -> Any:
    return self


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _once(run: Callable[[], Any], *_: Any, **__: Any) -> float:
    run()
    return MS


def _stand_ins() -> Iterator[Any]:
    """For all of `torch.cuda` that the stages use."""
    event = _class(torch.cuda.Event, record=_nothing, synchronize=_nothing, elapsed_time=_returning(MS))
    stream = _class(torch.cuda.Stream, wait_stream=_nothing)
    inside = {"__enter__": _context, "__exit__": _nothing}
    for name, stand_in in {
        "Event": event,
        "Stream": stream,
        "stream": _class(torch.cuda.StreamContext, **inside),
        "CUDAGraph": _class(torch.cuda.CUDAGraph, replay=_nothing),
        "graph": _class(torch.cuda.graph, **inside),
        "current_stream": _bound(torch.cuda.current_stream, lambda *_, **__: stream()),
    }.items():
        yield mock.patch.object(torch.cuda, name, stand_in)
    for name, value in {
        "synchronize": None,
        "is_available": True,
        "is_current_stream_capturing": False,
        "memory_allocated": 2**20,
        "max_memory_allocated": 2**21,
        "reset_peak_memory_stats": None,
        "get_device_name": DEVICE,
    }.items():
        yield mock.patch.object(torch.cuda, name, _bound(getattr(torch.cuda, name), _returning(value)))
    yield mock.patch.object(torch.backends.cudnn, "version", _bound(torch.backends.cudnn.version, _returning(0)))
    for name in ("start", "stop"):
        yield mock.patch.object(torch.cuda.profiler, name, _bound(getattr(torch.cuda.profiler, name), _nothing))


def _small() -> Iterator[Any]:
    """Sizes at which everything is quick."""
    quick = replace(TABLE[0], size=7)
    sizes: dict[Any, dict[str, Any]] = {
        gpu: {"DEVICE": torch.device("cpu"), "WARM_UPS": 1},
        harness: {"LEAST_ROUNDS": 2},
        launching: {"CALLS": 1},
        limits: {"ON_GPU": (32, 2**12)},
        operators: {
            "TABLE": TABLE,
            "QUICK": [quick],
            "FOR_KERNEL": replace(quick, batch=2),
            "GUIDE_CHANNELS": 4,
            "SERVED": 4,
        },
        resizing: {"COARSE": 4, "FINE": 16, "CLASSES": (3,)},
        crf: {"SIZE": 20, "STEPS": 2, "DILATIONS": (1, 2)},
        networks: {"SIZE": 16, "FCN8s": partial(FCN8s, hidden=8)},
        fcn8s: {"STAGES": tuple((3 if first == 3 else 4, 4, count) for first, _, count in fcn8s.STAGES)},
        gpu_correct: {"SIZE": (5, 4), "KINDS": [("float32", False), ("bfloat16", True)]},
        gpu_tiles: {"SHAPES": [(1, 64, 5)]},
        gpu_stages: {"LOOKED_AT": quick, "CHECKED": quick},
    }
    for module, values in sizes.items():
        for name, value in values.items():
            yield mock.patch.object(module, name, value)


def _with_results() -> Any:
    """The Triton backend, whose results are filled in by the reference."""
    backend, reference = choose.load("triton"), choose.load("reference")

    def guided(input: Any, guide: Any, coarse: Any, where: Any, scale: Any, residual: bool) -> torch.Tensor:
        distance, size = reference.resize_distance2d(guide, coarse, where), (coarse.shape[2], coarse.shape[3])
        out: torch.Tensor = reference.pacresize2d(
            input, guided_weights(distance, size, where, scale, residual), where
        )
        return out

    def filled(name: str) -> Callable[..., Any]:
        exact = guided if name == "guided_resize2d" else getattr(reference, name)

        def run(*args: Any) -> Any:
            found, true = getattr(backend, name)(*args), exact(*args)
            for a, e in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (found, true)), strict=True):
                if a is not None:
                    a.copy_(e)
            return found

        return run

    names = [name for name in vars(backend) if name == "guided_resize2d" or hasattr(reference, name)]
    functions = {name: filled(name) for name in names if inspect.isfunction(getattr(backend, name))}
    return types.SimpleNamespace(**{**vars(backend), **functions})


@contextmanager
def rehearsed() -> Iterator[None]:
    """In this block the stages of `gpu_check` run on the CPU."""
    backend, load = _with_results(), choose.load
    with ExitStack() as stack:
        stack.enter_context(stubbed(backend))
        for patch in (*_stand_ins(), *_small()):
            stack.enter_context(patch)
        stack.enter_context(
            mock.patch.object(choose, "load", lambda name: backend if name == "triton" else load(name))
        )
        stack.enter_context(mock.patch.object(choose, "backend_for", return_value="triton"))
        stack.enter_context(mock.patch.object(torch, "set_num_threads"))  # small maps do not need more
        timed = _bound(triton.testing.do_bench, _once)
        stack.enter_context(mock.patch.object(triton.testing, "do_bench", timed))
        yield
