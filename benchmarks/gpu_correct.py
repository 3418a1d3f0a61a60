"""Every family of kernels on a GPU, forward and backward, against plain PyTorch in float64 on the same GPU.

Inputs are drawn at random, rounded to the dtype, and widened for the reference: an error is the kernel's own. It is
the norm of the difference over the norm of what is true. Sums are float32 in every kernel, so in 16 bits the bound is
one unit in the last place of the result; in TF32 it is one of each factor, which chips may cut off and not round.
"""

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pac_ops
from benchmarks import gpu
from benchmarks.harness import facts, rows_of, save
from benchmarks.poison import poisoned
from pac_ops.backends import choose
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Window

FILE = "correctness.csv"
BOUNDS = {"float32": 1e-5, "tf32": 2**-9, "float16": 2**-10, "bfloat16": 2**-7}
BATCH, SIZE = 2, (37, 42)  # no multiple of a tile
# Precision, and whether images and weights are channels-last.
KINDS = [(precision, last) for precision in gpu.PRECISIONS for last in (False, True)]
Compute = Callable[[bool], Sequence[Tensor | None]]  # whether in float64, by the reference


@dataclass(frozen=True)
class Row:
    """One result of one family: an error and its bound, or why there is none."""

    family: str
    result: str
    precision: str
    layout: str
    error: float
    bound: float
    met: bool
    why: str
    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    date: str


@dataclass(frozen=True)
class Family:
    """Kernels that share code: the names of their results, and what computes these."""

    name: str
    results: tuple[str, ...]
    compute: Compute
    steps: int = 1  # one after the other, each with its own rounding


@dataclass(frozen=True)
class Drawn:
    """Tensors of a dtype, images and weights in one layout, at random."""

    dtype: torch.dtype
    last: bool

    def __call__(self, *shape: int) -> Tensor:
        """Normally distributed."""
        x = torch.randn(shape, device=gpu.DEVICE).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.last and len(shape) == 4 else x


def _by_backend(name: str, *arguments: Any) -> Compute:
    """A function that the Triton backend and the reference both have."""

    def compute(exact: bool) -> Sequence[Tensor | None]:
        given = [x.double() if exact and isinstance(x, Tensor) else x for x in arguments]
        result = getattr(choose.load("reference" if exact else "triton"), name)(*given)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    return compute


def _as_a_user(call: Callable[..., Tensor], *tensors: Tensor) -> Compute:
    """A call of the package, in which nothing is recorded."""

    def compute(exact: bool) -> Sequence[Tensor | None]:
        with torch.no_grad():
            if not exact:
                return (call(*tensors),)
            with pac_ops.use_backend("reference"):
                return (call(*(x.double() for x in tensors)),)

    return compute


# Name: channels in and out, window, groups.
CONVOLUTIONS = {
    "3x3": (64, 96, Window((3, 3), padding=(1, 1)), 1),
    "5x5, dilated": (21, 21, Window((5, 5), padding=(8, 8), dilation=(4, 4)), 1),
    "strided": (64, 48, Window((3, 3), stride=(2, 2), padding=(1, 1)), 1),
    "1x1": (64, 64, Window((1, 1)), 1),
    "grouped": (64, 64, Window((3, 3), padding=(1, 1)), 2),
    "groups of 4 channels": (32, 32, Window((3, 3), padding=(1, 1)), 8),
    "depthwise": (48, 48, Window((7, 7), padding=(3, 3)), 48),
}
TRANSPOSED = {
    "transposed": (64, 48, Window((5, 5), stride=(2, 2), padding=(2, 2)), 1),
    "transposed, grouped": (64, 64, Window((3, 3), stride=(2, 2), padding=(1, 1)), 2),
    "transposed, depthwise": (32, 32, Window((4, 4), stride=(2, 2), padding=(1, 1)), 32),
}
OF_CONVOLUTION = ("gradient of the input", "gradient of K", "gradient of the weight")


def families(drawn: Drawn) -> Iterator[Family]:
    """All of them, with tensors of a dtype and layout."""
    for name, (inner, outer, window, groups) in CONVOLUTIONS.items():
        yield from _convolution(drawn, name, "pacconv2d", window, groups, (inner, outer))
    for name, (inner, outer, window, groups) in TRANSPOSED.items():
        yield from _convolution(drawn, name, "pacconv_transpose2d", window, groups, (inner, outer))
    yield from _poolings(drawn)
    yield from _kernels(drawn)
    yield from _enlargements(drawn)
    yield _crf(drawn)


def _convolution(
    drawn: Drawn, name: str, operator: str, window: Window, groups: int, channels: tuple[int, int]
) -> Iterator[Family]:
    inner, outer = channels
    transposed = operator == "pacconv_transpose2d"
    sized = window.transposed_size(*SIZE, (1, 1)) if transposed else window.output_size(*SIZE)
    first, second = (inner, outer) if transposed else (outer, inner)
    kernel = torch.rand(BATCH, 1, *window.kernel_size, *sized, device=gpu.DEVICE)
    x, grad = drawn(BATCH, inner, *SIZE), drawn(BATCH, outer, *sized)
    weight, bias = drawn(first, second // groups, *window.kernel_size), drawn(outer)
    yield Family(name, ("output",), _by_backend(operator, x, kernel, weight, bias, window, groups))
    needs = (True, True, True)
    back = _by_backend(f"{operator}_backward", grad, x, kernel, weight, window, groups, needs)
    yield Family(f"{name}, backward", OF_CONVOLUTION, back)


def _poolings(drawn: Drawn) -> Iterator[Family]:
    window = Window((3, 3), padding=(1, 1))
    x, grad = drawn(BATCH, 24, *SIZE), drawn(BATCH, 24, *SIZE)
    for name, channels in (("pooling", 1), ("pooling, channel-wise", 24)):
        kernel = torch.rand(BATCH, channels, 3, 3, *SIZE, device=gpu.DEVICE)
        yield Family(name, ("output",), _by_backend("pacpool2d", x, kernel, window))
        back = _by_backend("pacpool2d_backward", grad, x, kernel, window, (True, True))
        yield Family(f"{name}, backward", OF_CONVOLUTION[:2], back)


def _kernels(drawn: Drawn) -> Iterator[Family]:
    for name, window in (
        ("K", Window((3, 3), padding=(1, 1))),
        ("K, 5x5, dilated", Window((5, 5), padding=(8, 8), dilation=(4, 4))),
        ("K, strided", Window((3, 3), stride=(2, 2), padding=(1, 1))),
    ):
        guide = drawn(BATCH, 24, *SIZE) / 24**0.5
        grad = torch.randn(BATCH, 1, *window.kernel_size, *window.output_size(*SIZE), device=gpu.DEVICE)
        yield Family(name, ("K",), _by_backend("gaussian_kernel2d", guide, window))
        yield Family(f"distances of {name}", ("distances",), _by_backend("squared_distance2d", guide, window))
        back = _by_backend("squared_distance2d_backward", grad, guide, window)
        yield Family(f"distances of {name}, backward", ("gradient of the guide",), back)


def _enlargements(drawn: Drawn) -> Iterator[Family]:
    fine = (4 * SIZE[0], 4 * SIZE[1])
    x, guide, coarse = drawn(BATCH, 21, *SIZE), drawn(BATCH, 3, *fine), drawn(BATCH, 3, *SIZE)
    for n in (2, 4):
        where, name = Enlargement(None, align_corners=False, footprint=n), f"enlargement, {n} x {n}"
        kernel = torch.rand(BATCH, 1, n, n, *fine, device=gpu.DEVICE)
        grad, pull = drawn(BATCH, 21, *fine), torch.randn_like(kernel)
        yield Family(name, ("output",), _by_backend("pacresize2d", x, kernel, where))
        back = _by_backend("pacresize2d_backward", grad, x, kernel, where, (True, True))
        yield Family(f"{name}, backward", OF_CONVOLUTION[:2], back)
        yield Family(f"{name}, distances", ("distances",), _by_backend("resize_distance2d", guide, coarse, where))
        back = _by_backend("resize_distance2d_backward", pull, guide, coarse, where)
        yield Family(f"{name}, distances, backward", ("gradient of the guide", "of the coarse one"), back)

        def guided(x: Tensor, guide: Tensor, footprint: int = n) -> Tensor:
            return pac_ops.pacresize2d(x, guide, scale=2.0, footprint=footprint)

        yield Family(f"{name}, in one pass", ("output",), _as_a_user(guided, x, guide), 3)


def _crf(drawn: Drawn) -> Family:
    torch.manual_seed(0)
    kernels = [{"kernel_size": 5, "dilation": d, "compat_type": "4d"} for d in (1, 4)]
    crf = pac_ops.PacCRF(21, 3, pairwise_kernels=kernels).to(gpu.DEVICE, drawn.dtype)
    wide = copy.deepcopy(crf).double()
    unary, features = drawn(1, 21, *SIZE), drawn(1, 3, *SIZE)

    def run(unary: Tensor, features: Tensor) -> Tensor:
        out: Tensor = (wide if unary.dtype == torch.float64 else crf)(unary, [features, features])
        return out

    return Family("CRF, 3 steps", ("output",), _as_a_user(run, unary, features), 12)


def checked(family: Family, precision: str, *, last: bool, about: dict[str, Any]) -> Iterator[Row]:
    """A row of each of its results."""
    layout, bound = ("channels-last" if last else "contiguous"), family.steps * BOUNDS[precision]

    def row(result: str, error: float, why: str = "") -> Row:
        return Row(family.name, result, precision, layout, error, bound, error <= bound, why, **about)

    try:
        with poisoned():
            found = family.compute(False)
        exact = family.compute(True)
        for name, a, e in zip(family.results, found, exact, strict=True):
            yield row(name, _error(a, e))
    except Exception as error:  # noqa: BLE001 (a family that fails must not hide the others)
        traceback.print_exc()
        yield row("all", float("nan"), f"{type(error).__name__}: {error}".splitlines()[0])


def _error(found: Tensor | None, exact: Tensor | None) -> float:
    """The norm of the difference over that of what is true."""
    if found is None or exact is None or found.shape != exact.shape:
        has, wanted = (None if x is None else list(x.shape) for x in (found, exact))
        raise ValueError(f"{has} for {wanted}")
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def correct(folder: Path) -> bool:
    """Rows of all that the folder has none of; whether all, those it had too, are within their bounds."""
    path, about = folder / FILE, facts(gpu.DEVICE)
    there = {(row["family"], row["precision"], row["layout"]) for row in rows_of(path)}
    for precision, last in KINDS:
        torch.manual_seed(0)
        for family in families(Drawn(gpu.PRECISIONS[precision][0], last)):
            if (family.name, precision, "channels-last" if last else "contiguous") in there:
                continue
            with gpu.in_precision(precision):
                for row in checked(family, precision, last=last, about=about):
                    save([row], path)
                    print(row.family, row.result, precision, row.layout, f"{row.error:.2e}", row.met, flush=True)
    return all(row["met"] == "True" for row in rows_of(path))
