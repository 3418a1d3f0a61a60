"""The plain network: built, woken up, and run at the first size that suits it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.coverage.networks import Inputs, Network
from benchmarks.coverage.outputs import run, tensors


class PlainError(Exception):
    """The network itself does not run."""


class NotApplicable(Exception):  # noqa: N818 (no error: there is nothing to do)
    """It has nothing of what is to be swapped."""


class Seen(Protocol):
    """What is noted of a network that runs."""

    parameters: int
    size: int  # side length of its input


def running(network: Network, report: Seen) -> tuple[nn.Module, Inputs]:
    """A network in evaluation mode, and what it is fed at the first of its sizes at which it runs.

    Every other plain convolution is in training mode, which makes no difference to it but must be kept.

    Raises:
        PlainError: it cannot be built, or runs at none of its sizes.
    """
    torch.manual_seed(0)
    try:
        model = network.build().eval()
    except Exception as error:  # whatever a constructor raises
        raise PlainError(f"cannot be built: {one_line(error)}") from error
    for convolution in [module for module in model.modules() if type(module) is nn.Conv2d][::2]:
        convolution.training = True
    report.parameters = sum(p.numel() for p in model.parameters())
    awaken(model)
    reasons = []
    for size in network.sizes:
        torch.manual_seed(1)
        try:
            inputs = network.inputs(model, size)
            with _norms_fitted(model):
                run(model, inputs)
            _check(run(model, inputs))
        except Exception as error:  # noqa: BLE001 (whatever a forward raises; the last reason is reported)
            reasons.append(f"at {size}: {one_line(error)}")
            continue
        report.size = size
        return model, inputs
    raise PlainError(reasons[-1])


def _check(output: Any) -> None:
    if not tensors(output):
        raise PlainError("it returns no floating-point tensor")
    if not all(bool(torch.isfinite(x).all()) for x in tensors(output)):
        raise PlainError("its outputs are not finite")


def awaken(model: nn.Module) -> None:
    """Fill what fresh networks start at (nearly) zero: it would hide a swap and stop gradients.

    Those are last norms of blocks, layer scales and zero-initialised heads; biases may stay as they are.
    """
    frozen = [(name, x) for name, x in model.named_buffers() if name.endswith("weight")]  # of norms
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *frozen]:
            if not p.is_floating_point() or p.numel() == 0 or (name.endswith("bias") and p.dim() == 1):
                continue
            first = p.flatten()[0]
            if first.abs() < 0.1 and bool((p == first).all()):
                if p.dim() > 1 and p.shape[1:].numel() > 1:
                    p.normal_(0, p[0].numel() ** -0.5)
                else:
                    p.uniform_(0.5, 1.0)


@contextmanager
def _norms_fitted(model: nn.Module) -> Iterator[None]:
    """Let batch norms take the statistics of what they see, so that activations of a fresh network stay near 1."""

    def fit(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        x, kept_mean, kept_variance = arguments[0], norm.running_mean, norm.running_var
        assert isinstance(kept_mean, Tensor)
        assert isinstance(kept_variance, Tensor)
        # One number for all channels: of each by itself, few pixels would be pushed together or torn apart.
        kept_mean.fill_(x.mean())
        kept_variance.fill_(x.var() + 1e-6)

    # Detection networks have frozen ones of their own class.
    norms = [
        m
        for m in model.modules()
        if all(isinstance(getattr(m, f"running_{x}", None), Tensor) for x in ("mean", "var"))
    ]
    handles = [norm.register_forward_pre_hook(fit) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def one_line(error: BaseException) -> str:
    """Its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
