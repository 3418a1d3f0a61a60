"""Versions, usable backends, and a test of every operator on each of them."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import pac_ops
from hotswap import versions
from hotswap.errors import one_line
from hotswap.tables import render
from pac_ops.backends import choose

_PACKAGES = (
    "hotswap",
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "torchvision",
    "timm",
    "transformers",
    "segmentation-models-pytorch",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnxruntime",
)
TOLERANCE = 1e-4  # float32 against the float64 oracle, relative to the largest value


@dataclass(frozen=True)
class Backend:
    """One backend on one device."""

    device: str
    name: str
    why_not: str | None  # None where it can run


@dataclass(frozen=True)
class Check:
    """One operator, forward and backward, on one backend, against the float64 oracle."""

    device: str
    backend: str
    operator: str
    largest_error: float  # of output and gradients, relative to the largest value of each; inf where it failed
    seconds: float
    failure: str | None  # what it raised

    @property
    def passed(self) -> bool:
        """Whether it computes what it should."""
        return self.failure is None and self.largest_error <= TOLERANCE


@dataclass(frozen=True)
class Diagnosis:
    """The result of `doctor`."""

    versions: dict[str, str | None]  # of packages, by name; None where one is not installed
    backends: tuple[Backend, ...]
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        checks = [asdict(c) | {"passed": c.passed, "largest_error": _finite(c.largest_error)} for c in self.checks]
        return {
            "healthy": self.healthy,
            "versions": self.versions,
            "backends": [asdict(backend) for backend in self.backends],
            "checks": checks,
        }

    def __str__(self) -> str:
        """Versions, backends, checks, and the verdict."""
        installed = ", ".join(f"{name} {version}" for name, version in self.versions.items() if version)
        missing = ", ".join(name for name, version in self.versions.items() if version is None)
        usable = [(b.device, b.name, "yes" if b.why_not is None else f"no: {b.why_not}") for b in self.backends]
        checked = [
            (c.device, c.backend, c.operator, f"{c.largest_error:.1e}", f"{c.seconds:.2f}", c.failure or _verdict(c))
            for c in self.checks
        ]
        return "\n".join(
            [
                installed,
                *([f"not installed: {missing}"] if missing else []),
                render(("device", "backend", "usable"), usable),
                render(("device", "backend", "operator", "largest error", "seconds", "result"), checked),
                "all operators compute what they should" if self.healthy else "something is wrong: see above",
            ]
        )


def doctor() -> Diagnosis:
    """Report versions and backends, and test each operator on each usable backend, in seconds."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    candidates = [
        Backend(device, name, choose.why_not(name, torch.empty(1, device=device)))
        for device in devices
        for name in choose.BACKENDS
    ]
    usable = [b for b in candidates if b.why_not is None and b.name != "reference"]  # the oracle
    checks = tuple(_check(b.device, b.name, operator) for b in usable for operator in _OPERATORS)
    return Diagnosis(versions.installed(_PACKAGES), tuple(candidates), checks)


# --- the self-test ------------------------------------------------------------------------------------------


def _convolution(x: Tensor, guide: Tensor, weight: Tensor) -> Tensor:
    kernel, _ = pac_ops.packernel2d(guide, kernel_size=3, padding=1)
    return pac_ops.pacconv2d(x, kernel, weight, padding=1)


def _transposed(x: Tensor, guide: Tensor, weight: Tensor) -> Tensor:
    kernel, _ = pac_ops.packernel2d(guide, None, 3, 2, 1, 1, transposed=True)
    return pac_ops.pacconv_transpose2d(x, kernel, weight.transpose(0, 1), None, 2, 1, 1)


def _pool(x: Tensor, guide: Tensor, weight: Tensor) -> Tensor:
    kernel, _ = pac_ops.packernel2d(guide, kernel_size=3, padding=1)
    return pac_ops.pacpool2d(x * weight.sum(), kernel, 3, 1, 1)


def _enlargement(x: Tensor, guide: Tensor, weight: Tensor) -> Tensor:
    return pac_ops.pacresize2d(x * weight.sum(), guide)


# By name: the operator, and how many times larger than the input its guide is.
_OPERATORS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]] = {
    "PacConv2d": (_convolution, 1),
    "PacConvTranspose2d": (_transposed, 2),
    "PacPool2d": (_pool, 1),
    "PacResize2d": (_enlargement, 2),
}


def _check(device: str, backend: str, operator: str) -> Check:
    run, factor = _OPERATORS[operator]
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 16, 9, 11), (2, 3, 9 * factor, 11 * factor), (8, 16, 3, 3))
    numbers = [torch.randn(size, generator=generator, dtype=torch.float64) / 2 for size in sizes]
    with pac_ops.use_backend("reference"):
        expected = _with_gradients(run, numbers)
    started = time.perf_counter()
    try:
        with pac_ops.use_backend(backend):
            computed = _with_gradients(run, [x.to(device, torch.float32) for x in numbers])
    except Exception as error:  # noqa: BLE001 (whatever a broken installation raises is what is looked for)
        seconds = time.perf_counter() - started
        return Check(device, backend, operator, float("inf"), seconds, one_line(error))
    seconds = time.perf_counter() - started
    errors = [(a.double().cpu() - b).abs().max() / b.abs().max() for a, b in zip(computed, expected, strict=True)]
    largest = float(torch.stack(errors).max())  # not Python's max, which passes over NaN
    return Check(device, backend, operator, largest, seconds, None)


def _with_gradients(run: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def _verdict(check: Check) -> str:
    return "ok" if check.passed else f"wrong: more than {TOLERANCE:.0e}"


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
