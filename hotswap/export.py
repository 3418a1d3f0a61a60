"""Files that run a network where hotswap is not: ONNX, and PyTorch's own exported programs."""

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from hotswap import exporting
from hotswap.errors import HotswapError, one_line
from hotswap.files import PathLike, atomic_write, check_writable
from hotswap.observe import Inputs, as_arguments, default_inputs, mode
from pac_ops import standard

ONNX, PROGRAM = "onnx", "exported-program"
FORMATS = {".onnx": ONNX, ".pt2": PROGRAM}  # by the file's suffix
TOLERANCE = 1e-4  # the largest difference allowed, relative to the largest output
_AXES = {0: "batch", 2: "height", 3: "width"}
_MORE = {0: 1, 2: 32, 3: 64}  # what the second size that is tried has more along each
_ONNX_LIMIT = 2**31 - 2**20  # bytes: what one ONNX file can hold

Run = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: str
    format: str  # "onnx" or "exported-program"
    bytes: int
    inputs: tuple[tuple[int | str, ...], ...]  # sizes, a name where any size will do
    largest_difference: float  # from PyTorch, relative to the largest output, over the sizes that were tried
    tried: tuple[tuple[int, ...], ...]  # sizes of the first input

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """A line about the file, then one about what was checked."""
        sizes = "; ".join(" x ".join(str(n) for n in size) for size in self.inputs)
        tried = " and ".join(" x ".join(str(n) for n in size) for size in self.tried)
        return (
            f"{self.path}: {self.format}, {self.bytes / 1e6:.1f} MB, input {sizes}\n"
            f"largest difference from PyTorch: {self.largest_difference:.1e} of the largest output, at {tried}"
        )


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
        model: the network, on the CPU. It is exported in evaluation mode, and left as it is.
        path: an existing file is replaced.
        format: "onnx" or "exported-program"; by default what the name ends in: `.onnx` or `.pt2`.
        example_inputs: a tensor or a tuple of arguments; by default one image of the network's usual size.
        dynamic: leave batch, height and width of images open where the network's code does. `Exported.inputs` tells.

    Raises:
        HotswapError: where the network cannot be exported, with the reason, or the file computes something else than
            the network; nothing is then written.
    """
    kind = FORMATS.get(Path(path).suffix.lower()) if format is None else format
    if kind is None:
        raise HotswapError(f"an exported file's name must end in .onnx or .pt2, got {str(path)!r}; or give a format")
    if kind not in FORMATS.values():
        raise HotswapError(f"format must be {ONNX} or {PROGRAM}, got {kind!r}")
    check_writable(path)
    if kind == ONNX:
        _require_onnx()
    arguments = _numbers(as_arguments(default_inputs(model) if example_inputs is None else example_inputs), dynamic)
    with mode(model, training=False), torch.no_grad():
        for axes in _axes_to_open(model, arguments) if dynamic else [()]:
            with suppress(_TooOpenError):  # the exporter took one size for granted where the network does not
                return _exported(model, path, kind, arguments, axes)
    raise AssertionError("without open axes there is nothing to be too open")


class _TooOpenError(Exception):
    """A file that does not run at a size that it should be open to."""


def _exported(
    model: nn.Module, path: PathLike, kind: str, arguments: tuple[Any, ...], axes: tuple[int, ...]
) -> Exported:
    program = _program(model, arguments, axes)
    sizes = tuple(_sizes(node.meta["val"]) for node in _images(program))
    opened = [axis for axis in axes if any(axis < len(size) and isinstance(size[axis], str) for size in sizes)]
    tried = [arguments, *([_larger(arguments, opened)] if opened else [])]
    with atomic_write(path) as temporary:
        written = (_write_onnx if kind == ONNX else _write_program)(program, arguments, temporary)
        gaps = [_difference(model, written, arguments)]
        for inputs in tried[1:]:
            try:
                gaps.append(_difference(model, written, inputs))
            except Exception as error:  # whatever the runtime raises
                raise _TooOpenError from error
        worst = _largest(gaps)
        if not worst <= TOLERANCE:
            raise HotswapError(
                f"the exported network differs from PyTorch's by {worst:.1e} of its largest output, and must not "
                f"by more than {TOLERANCE:.0e}; nothing was written. This is a bug in hotswap or the exporter"
            )
        size = temporary.stat().st_size
    firsts = (next(x for x in inputs if isinstance(x, Tensor)) for inputs in tried)
    return Exported(str(path), kind, size, sizes, worst, tuple(tuple(x.shape) for x in firsts))


# --- the graph ----------------------------------------------------------------------------------------------


def _axes_to_open(model: nn.Module, arguments: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
    """Axes of images whose size the network's own code leaves open, the most first: all, the batch, none."""
    for axes in ((0, 2, 3), (0,)):
        try:
            model(*_larger(arguments, axes))
        except Exception:  # noqa: BLE001, S112 (whatever a user's forward raises at a size it is not made for)
            continue
        yield axes
    yield ()


def _program(model: nn.Module, arguments: tuple[Any, ...], axes: Sequence[int]) -> ExportedProgram:
    open_sizes = dict.fromkeys(axes, Dim.AUTO)
    shapes = tuple(open_sizes if axes and _is_image(x) else None for x in arguments)
    try:
        with _silence():
            program = exporting.program(model, arguments, shapes)
            standardised: ExportedProgram = program.run_decompositions(standard.decompositions())
            return standardised
    except Exception as error:  # whatever a user's forward raises when it is traced
        hint = "; dynamic=False (--static) asks less of it" if axes else ""
        raise HotswapError(f"torch.export cannot export this network: {one_line(error, 300)}{hint}") from error


def _images(program: ExportedProgram) -> list[torch.fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _sizes(x: Any) -> tuple[int | str, ...]:
    if not isinstance(x, Tensor):
        return ()
    return tuple(n if isinstance(n, int) else _AXES.get(axis, f"size_{axis}") for axis, n in enumerate(x.shape))


# --- files --------------------------------------------------------------------------------------------------


def _write_program(program: ExportedProgram, arguments: tuple[Any, ...], file: Path) -> Run:
    stream = io.BytesIO()  # torch.export.save wants a name that ends in .pt2, which the temporary's does not
    with _silence():
        torch.export.save(program, stream)
        file.write_bytes(stream.getbuffer())
        stream.seek(0)
        loaded = torch.export.load(stream).module()
    return lambda *inputs: _tensors(loaded(*inputs))


def _write_onnx(program: ExportedProgram, arguments: tuple[Any, ...], file: Path) -> Run:
    import onnx
    import onnxruntime

    try:
        with _silence():
            made = torch.onnx.export(program, arguments, dynamo=True, dynamic_shapes=None, verbose=False)
    except Exception as error:  # the exporter's own classes, none of them public
        raise HotswapError(f"PyTorch's ONNX exporter cannot write this network: {one_line(error, 300)}") from error
    assert made is not None  # noqa: S101 (as dynamo=True)
    proto = made.model_proto
    if proto.ByteSize() > _ONNX_LIMIT:
        raise HotswapError(
            f"the network's {proto.ByteSize() / 1e9:.1f} GB are more than one ONNX file can hold, 2 GB; write a .pt2 "
            "file"
        )
    onnx.checker.check_model(proto)
    onnx.save(proto, file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails raises too, and a size that a file does not run at is no user's error
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
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


def _is_image(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4


def _numbers(arguments: Sequence[Any], dynamic: bool) -> tuple[Any, ...]:
    """Random values where none are given; two images, if the batch is to stay open: 1 would be taken for granted."""
    generator = torch.Generator().manual_seed(0)

    def made(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.is_meta:
            x = torch.rand(x.shape, generator=generator).to(x.dtype)
        return torch.cat([x, x.flip(-1)]) if dynamic and _is_image(x) and x.shape[0] == 1 else x

    return tuple(made(x) for x in arguments)


def _larger(arguments: tuple[Any, ...], axes: Sequence[int]) -> tuple[Any, ...]:
    """The same with other sizes along these axes: one image more, larger by a multiple of 32."""
    generator = torch.Generator().manual_seed(1)

    def made(x: Any) -> Any:
        if not _is_image(x):
            return x
        shape = [n + _MORE[axis] if axis in axes else n for axis, n in enumerate(x.shape)]
        return torch.rand(shape, generator=generator).to(x.dtype)

    return tuple(made(x) for x in arguments)


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]


def _difference(model: nn.Module, written: Run, inputs: tuple[Any, ...]) -> float:
    expected = _tensors(model(*inputs))
    found = written(*inputs)
    if [x.shape for x in expected] != [x.shape for x in found]:
        return float("inf")
    gaps = [
        (x.double() - y.double()).abs().max() / y.double().abs().max().clamp_min(1e-12)
        for x, y in zip(found, expected, strict=True)
        if y.numel()
    ]
    return _largest(gaps)


def _largest(gaps: Iterable[float | Tensor]) -> float:
    """Not `max`, which passes over NaN."""
    return float(torch.tensor([0.0, *gaps], dtype=torch.float64).max())


@contextmanager
def _silence() -> Iterator[None]:
    """Without what the exporters print and warn of on their way."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
