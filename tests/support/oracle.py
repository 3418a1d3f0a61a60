"""Cases, and the one table of tolerances by which a backend is held against the float64 oracle."""

from dataclasses import dataclass

import pytest
import torch

import pac_ops
from pac_ops.backends.choose import BACKENDS, why_not

# Relative to the largest value of the expected tensor. Sums here have at most about 500 products.
TOLERANCE = {
    torch.float64: 1e-12,  # 500 roundings of 1e-16, with room for cancellation
    torch.float32: 2e-5,  # the same at 6e-8
    # Narrow inputs are rounded before they come here and sums are float32, so one rounding of the result remains
    # (2^-11, 2^-8), and for a gradient of the input two: of the incoming gradient, which is exact here, and its own.
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


@dataclass(frozen=True)
class Case:
    """One call of pacconv2d on a guide; an id that reads."""

    batch: int = 2
    channels: int = 4
    out_channels: int = 6
    guide_channels: int = 3
    height: int = 9
    width: int = 7
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    def __str__(self):
        default = Case()
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(default, k)]
        return ",".join(changed).replace(" ", "") or "default"

    def inputs(self, dtype, seed=0):
        """input, guide, weight, bias and the gradient that comes in, all rounded to `dtype`."""
        generator = torch.Generator().manual_seed(seed)

        def make(*shape, scale=1.0):
            return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

        kh, kw = self.kernel_size
        ho, wo = pac_ops.geometry.Window(*self.window).output_size(self.height, self.width)
        return {
            "input": make(self.batch, self.channels, self.height, self.width),
            "guide": make(self.batch, self.guide_channels, self.height, self.width, scale=0.5),
            "weight": make(self.out_channels, self.channels // self.groups, kh, kw),
            "bias": make(self.out_channels) if self.bias else None,
            "grad": make(self.batch, self.out_channels, ho, wo),
        }

    @property
    def window(self):
        return self.kernel_size, self.stride, self.padding, self.dilation

    def kernel(self, guide):
        """K of the gaussian kernel function for this window."""
        size, stride, padding, dilation = self.window
        return pac_ops.packernel2d(guide, None, size, stride, padding, dilation=dilation)[0]

    def run(self, inputs, backend):
        """Output, K, and the gradients of input, guide, weight and bias, from one backend."""
        grad = inputs["grad"]
        leaves = {k: v.detach().requires_grad_() for k, v in inputs.items() if v is not None and k != "grad"}
        with pac_ops.use_backend(backend):
            kernel = self.kernel(leaves["guide"])
            out = pac_ops.pacconv2d(
                leaves["input"], kernel, leaves["weight"], leaves.get("bias"), *self.window[1:], self.groups
            )
            out.backward(grad)
        return {"output": out.detach(), "kernel": kernel.detach()} | {f"d{k}": v.grad for k, v in leaves.items()}


CASES = [
    Case(),
    Case(bias=False),
    Case(kernel_size=(1, 1), padding=(0, 0)),
    Case(kernel_size=(3, 5), padding=(1, 2)),
    Case(kernel_size=(5, 1), padding=(2, 0)),
    Case(kernel_size=(7, 7), padding=(3, 3), groups=4, out_channels=4),  # depthwise
    Case(groups=2),
    Case(channels=8, out_channels=4, groups=4),
    Case(stride=(2, 2)),
    Case(stride=(1, 3), dilation=(2, 1), padding=(2, 1)),
    Case(stride=(2, 1), kernel_size=(5, 3), padding=(0, 1)),
    Case(dilation=(2, 3), padding=(2, 3)),
    Case(padding=(0, 0)),
    Case(padding=(5, 4)),  # larger than the window reaches: some windows see nothing
    Case(dilation=(16, 16), padding=(16, 16), height=12, width=20),  # taps outside the image on every side
    Case(height=1, width=1),
    Case(height=1, width=13),
    Case(height=31, width=2),
    Case(batch=1, channels=1, out_channels=1, guide_channels=1),
    Case(guide_channels=33),
    Case(guide_channels=0),  # K = 1
    Case(batch=0),
    # Wider than a vector, deeper and longer than a block: the edges of the compiled kernels' tiles, panels and bands.
    Case(batch=1, channels=50, out_channels=20, height=40, width=31),
    Case(height=6, width=33, dilation=(2, 8), padding=(2, 8)),
    Case(height=5, width=40, stride=(2, 2), out_channels=5),
    Case(height=8, width=37, kernel_size=(7, 7), padding=(3, 3), groups=4, out_channels=4),
    Case(height=4, width=50, channels=16, out_channels=16, groups=2),
]


def pairs(dtypes):
    """Every backend with each of these dtypes; the compiled one with float32 anyway."""
    compiled = []
    for dtype in dict.fromkeys((torch.float32, *dtypes)):
        missing = why_not("native", torch.zeros((), dtype=dtype))
        skip = [pytest.mark.skip(reason=missing)] if missing else []
        compiled.append(pytest.param("native", dtype, id=f"native-{dtype}", marks=skip))
    return [
        *(pytest.param(backend, dtype, id=f"{backend}-{dtype}") for backend in PLAIN for dtype in dtypes),
        *compiled,
    ]


PLAIN = [backend for backend in BACKENDS if backend in ("cpu", "reference")]  # in plain torch, any dtype


def assert_close(actual, expected, held_to, what, floor=1e-30):
    """Compare with the float64 expectation by the largest error over the largest expected value, or the floor.

    `held_to` is a dtype of the table, or a tolerance. The floor is for what may be a difference of equal numbers.
    """
    assert actual.shape == expected.shape, what
    if expected.numel() == 0:
        return
    scale = expected.abs().max().clamp_min(floor)
    error = ((actual.double() - expected).abs().max() / scale).item()
    assert error <= TOLERANCE.get(held_to, held_to), f"{what}: relative error {error:.2e}, held to {held_to}"
