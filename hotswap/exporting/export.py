"""Files that run without hotswap: ONNX, and PyTorch's own exported programs."""

import importlib.util
import io
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int, statically_known_true

from hotswap.choices import ONNX
from hotswap.errors import HotswapError, one_line
from hotswap.exporting import guards, onnx_program
from hotswap.exporting.few_axes import value
from hotswap.exporting.program import exported_program, inputs
from hotswap.exporting.sizes import (
    BATCH,
    HEIGHT,
    LEAST,
    WIDTH,
    Trial,
    difference,
    is_image,
    other_sizes,
    outputs,
    run_at,
    tensors,
    tolerance,
)
from hotswap.files.atomic import PathLike, atomic_write
from hotswap.files.destinations import check_export
from hotswap.network.dry_run import Inputs, as_arguments, default_inputs, mode

_AXES = {BATCH: "batch", HEIGHT: "height", WIDTH: "width"}
_OPEN = (tuple(_AXES), (BATCH,), ())  # what is left open: the most first
_LARGEST = 2**16  # pixels a side
_ONNX_LIMIT = 2**31 - 2**20  # bytes: what one ONNX file can hold

Run = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Exported:
    """The file that was written, and how it was checked."""

    path: str
    format: str  # "onnx" or "exported-program"
    bytes: int
    inputs: tuple[tuple[int | str, ...], ...]  # sizes, a name where any size will do
    largest_difference: float  # from PyTorch, relative to the largest output, over the sizes that were tried
    tried: tuple[tuple[int, ...], ...]  # sizes of the first input; at all of them the network itself runs
    fixed: str = ""  # why an axis that was to be open is not, where one is not

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """A line about the file, one about what was checked, and one about what is not open, where something is."""
        sizes = "; ".join(" x ".join(str(n) for n in size) for size in self.inputs)
        tried = ", ".join(_times(size) for size in self.tried)
        lines = [
            f"{self.path}: {self.format}, {self.bytes / 1e6:.1f} MB, input {sizes}",
            f"largest difference from PyTorch: {self.largest_difference:.1e} of the largest output; tried at {tried}",
            *([self.fixed] if self.fixed else []),
        ]
        return "\n".join(lines)


def export(
    model: nn.Module,
    path: PathLike,
    *,
    format: str | None = None,
    example_inputs: Inputs | None = None,
    dynamic: bool = True,
) -> Exported:
    """Write a network, swapped or plain, for inference without hotswap; it is checked against PyTorch before.

    PAC is written in standard operations (see `pac_ops.standard`). Writing ONNX takes the extra `export`; an exported
    program is loaded by `torch.export.load`, and needs neither hotswap nor pac_ops.

    Args:
        model: the network, on the CPU. It is exported in evaluation mode, and left as it is. A bfloat16 network goes
            to exported programs alone: onnxruntime cannot run one on the CPU.
        path: an existing file is replaced.
        format: "onnx" or "exported-program"; by default what the name ends in: `.onnx` or `.pt2`.
        example_inputs: a tensor or a tuple of arguments; by default one image of the network's usual size.
        dynamic: leave batch, height and width of images open where the network's code does, and where the file is
            right at three further sizes at least. `Exported.inputs` tells, and `Exported.fixed` why they are not.

    Raises:
        HotswapError: where the network cannot be exported, with the reason, or the file computes something else than
            the network; nothing is then written.
    """
    kind = check_export(path, format)
    if kind == ONNX:
        _require_onnx()
    given = as_arguments(default_inputs(model) if example_inputs is None else example_inputs)
    with mode(model, training=False), torch.no_grad():
        arguments = _numbers(given, two=dynamic)
        if dynamic and not _takes(model, arguments):  # one image at a time, as networks imported from ONNX may
            arguments = _numbers(given, two=False)
        example = Trial(arguments, outputs(model, arguments))
        why = ""
        for axes in _OPEN if dynamic else ((),):
            others = other_sizes(model, arguments, axes)
            if axes and len(others) < LEAST:
                why = why or "the network itself runs at too few other sizes"
                continue
            try:
                exported = _exported(model, path, kind, [example, *others], axes)
            except _TooOpenError as error:  # the exporter took one size for granted where the network does not
                why = why or f"with more left open, {error}"
                continue
            closed = [
                name for name in _AXES.values() if dynamic and not any(name in size for size in exported.inputs)
            ]
            reason = why or "the network's code takes the example's for granted"
            return replace(exported, fixed=f"fixed at the example's {', '.join(closed)}: {reason}" if closed else "")
    raise AssertionError("without open axes there is nothing to be too open")


class _TooOpenError(Exception):
    """A file is wrong, or does not run, at a size that it should accept; the message says how."""


def _exported(model: nn.Module, path: PathLike, kind: str, trials: list[Trial], axes: tuple[int, ...]) -> Exported:
    arguments = trials[0].arguments
    program = _program(model, arguments, axes, keep=kind == ONNX)
    sizes = tuple(_sizes(node.meta["val"]) for node in inputs(program))
    opened = [axis for axis in axes if any(axis < len(size) and isinstance(size[axis], str) for size in sizes)]
    if len(opened) < len(axes):  # the network's code fixes the others
        trials = [trials[0], *other_sizes(model, arguments, opened)]
    if kind == ONNX:  # an exported program holds what was taken for granted, and refuses other sizes by itself
        outside = (run_at(model, arguments, opened, size) for size in guards.sizes_outside(program))
        trials = [*trials, *filter(None, outside)]
        if {HEIGHT, WIDTH} & {*opened} and (seen := _rounded(program)):
            raise _TooOpenError(f"the file {seen}")
    allowed = tolerance(model, arguments)
    with atomic_write(path) as temporary:
        written = (_write_onnx if kind == ONNX else _write_program)(program, arguments, temporary)
        gaps = []
        for trial in trials:
            try:
                gap = difference(outputs(written, trial.arguments), trial.expected)
            except Exception as error:  # noqa: BLE001 (whatever the runtime raises; it is raised again)
                _refuse(f"fails at {_times(trial.size)}: {_plain(error)}", error, opened)
            if not gap <= allowed:
                _refuse(
                    f"differs from PyTorch by {gap:.1e} of the largest output at {_times(trial.size)}, and must not "
                    f"by more than {allowed:.0e}",
                    None,
                    opened,
                )
            gaps.append(gap)
        size = temporary.stat().st_size
    return Exported(str(path), kind, size, sizes, max(gaps), tuple(trial.size for trial in trials))


def _refuse(seen: str, error: Exception | None, opened: Sequence[int]) -> NoReturn:
    """Raise for a bad file: to open fewer axes, or, where none is open, for good."""
    if opened:
        raise _TooOpenError(f"the file {seen}") from error
    raise HotswapError(
        f"the exported file {seen}; nothing was written. This is a bug in hotswap or the exporter"
    ) from error


# --- the graph ----------------------------------------------------------------------------------------------


def _program(model: nn.Module, arguments: tuple[Any, ...], axes: Sequence[int], *, keep: bool) -> ExportedProgram:
    open_sizes = dict.fromkeys(axes, Dim.AUTO)
    shapes = tuple(open_sizes if axes and is_image(x) else None for x in arguments)
    try:
        with _silence():
            return exported_program(model, arguments, shapes, keep=keep)
    except Exception as error:  # whatever a user's forward raises when it is traced
        if axes and isinstance(error, NotImplementedError):  # a condition on sizes that it cannot solve
            raise _TooOpenError(f"torch.export fails: {_plain(error)}") from error
        hint = "; dynamic=False (--static) asks less of it" if axes else ""
        raise HotswapError(f"torch.export cannot export this network: {_plain(error)}{hint}") from error


def _rounded(program: ExportedProgram) -> str | None:
    """How ONNX enlarges by a factor otherwise than PyTorch at some size, for messages; None where it does not.

    It multiplies sizes in float32, not in float64, and samples anew an axis of unchanged size, which PyTorch copies.
    """
    sizes = np.arange(_LARGEST)
    for factor, copied in _factors(program):
        right, rounded = np.floor(sizes * factor), np.floor(sizes.astype(np.float32) * np.float32(factor))
        for n in np.flatnonzero(right != rounded)[:1]:
            return f"rounds {n} x {factor} to {rounded[n]:.0f}, and PyTorch to {right[n]:.0f}"
        for n in np.flatnonzero((right == sizes) & (sizes > 1))[:1] if copied and factor != 1 else ():
            return f"samples {n} pixels x {factor} anew, which PyTorch copies"
    return None


def _factors(program: ExportedProgram) -> Iterator[tuple[float, bool]]:
    """Factors that sizes are multiplied by, and whether PyTorch's own enlargements do so, which copy."""
    for node in program.graph.nodes:
        if node.target in (math.floor, math.trunc) and getattr(node.args[0], "target", None) is operator.mul:
            yield from ((x, False) for x in node.args[0].args if isinstance(x, float))
        elif node.op == "call_function" and "upsample" in str(node.target):
            yield from (
                (x, True) for given in node.args if isinstance(given, Sequence) for x in given if isinstance(x, float)
            )


def _sizes(x: Any) -> tuple[int | str, ...]:
    if not isinstance(x, Tensor):
        return ()
    return tuple(int(n) if is_concrete_int(n) else _AXES.get(axis, f"size_{axis}") for axis, n in enumerate(x.shape))


# --- files --------------------------------------------------------------------------------------------------


def _write_program(program: ExportedProgram, arguments: tuple[Any, ...], file: Path) -> Run:
    for node in program.graph.find_nodes(op="call_function", target=math.floor):
        if statically_known_true(value(node.args[0]) >= 0):
            node.target = math.trunc  # the same, and torch.export.save has no other name for it
    program.graph_module.recompile()
    stream = io.BytesIO()  # torch.export.save wants a name that ends in .pt2, which the temporary's does not
    try:
        with _silence():
            torch.export.save(program, stream)
            file.write_bytes(stream.getbuffer())
            stream.seek(0)
            loaded = torch.export.load(stream).module()
    except Exception as error:  # its own classes, none of them public
        raise HotswapError(f"torch.export.save cannot write this network: {_last_line(error)}") from error
    return lambda *inputs: tensors(loaded(*inputs))


def _write_onnx(program: ExportedProgram, arguments: tuple[Any, ...], file: Path) -> Run:
    import onnx
    import onnxruntime

    if any(x.dtype == torch.bfloat16 for node in program.graph.nodes for x in tensors(node.meta.get("val"))):
        raise HotswapError(
            "onnxruntime has no bfloat16 operations on the CPU, so an ONNX file of this network, which computes in "
            "bfloat16, could be neither checked nor run there; export model.float() or model.half(), or write a .pt2 "
            "file"
        )
    try:
        with _silence():
            proto = onnx_program.model(program, arguments)
    except Exception as error:  # the exporter's own classes, none of them public
        raise HotswapError(f"PyTorch's ONNX exporter cannot write this network: {_plain(error)}") from error
    if proto.ByteSize() > _ONNX_LIMIT:
        raise HotswapError(
            f"the network's {proto.ByteSize() / 1e9:.1f} GB are more than one ONNX file can hold, 2 GB; write a .pt2 "
            "file"
        )
    onnx.checker.check_model(proto)
    onnx.save(proto, file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails raises too, and a size that a file does not run at is no user's error
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, none of them public
        raise HotswapError(
            f"onnxruntime cannot run the file of this network, and nothing was written: {_plain(error)}; a .pt2 file "
            "does not need it"
        ) from error
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Any) -> list[Tensor]:
        arrays = [x.numpy() for x in inputs if isinstance(x, Tensor)]
        return [torch.from_numpy(y) for y in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise HotswapError(f"writing ONNX needs {name}: pip install 'hotswap[export]'")


# --- inputs and outputs -------------------------------------------------------------------------------------


def _takes(model: nn.Module, arguments: tuple[Any, ...]) -> bool:
    try:
        outputs(model, arguments)
    except Exception:  # noqa: BLE001 (whatever a user's forward raises at a batch it is not made for)
        return False
    return True


def _numbers(arguments: Sequence[Any], *, two: bool) -> tuple[Any, ...]:
    """Random values where none are given; two images, if the batch is to stay open: 1 would be taken for granted."""
    generator = torch.Generator().manual_seed(0)

    def numbered(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.is_meta:
            x = torch.rand(x.shape, generator=generator).to(x.dtype)
        return torch.cat([x, x.flip(-1)]) if two and is_image(x) and x.shape[0] == 1 else x

    return tuple(numbered(x) for x in arguments)


def _plain(error: Exception) -> str:
    """The error of an exporter or a runtime in one line, without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", one_line(error, 300))


def _last_line(error: Exception) -> str:
    """The last line of an error whose message holds a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the output and warnings of the exporters."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
