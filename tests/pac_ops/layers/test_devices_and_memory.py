"""Every layer on other devices, and the memory that layers take."""

import pytest
import torch
from devices import needs_fake_cuda
from layer_cases import INVERSE, changed, every_layer, output
from oracle import TOLERANCE, assert_close
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pac_ops
from pac_ops import PacConv2d, PacConvTranspose2d, PacPool2d
from pac_ops.backends.choose import backend_for


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_any_other_device_takes_the_reference_path(device, monkeypatch):
    with FakeTensorMode():
        x = torch.empty(1, 4, 5, 6, device=device)
        assert backend_for(x) == "reference"
        monkeypatch.setenv("PAC_OPS_BACKEND", "cpu")
        with pytest.raises(ValueError, match=f"^backend 'cpu' was asked for but cannot run: .*{device}[^\n]*$"):
            backend_for(x)


@every_layer
@needs_fake_cuda
def test_layers_stay_on_their_device(case):
    """A fake tensor refuses to meet one of another device. (Of mps and xpu a build without them has too few.)"""
    arguments = case.arguments()
    with FakeTensorMode():
        layer = case.make(device="cuda")
        x, guide, _, mask = changed(arguments, lambda x: torch.empty(x.shape, device="cuda", dtype=x.dtype))
        assert output(layer(x, guide, None, mask)).device.type == "cuda"


@needs_fake_cuda
def test_the_reference_path_stays_on_its_device():
    """Inside the operators, which fake tensors otherwise do not enter."""
    from pac_ops.backends import reference
    from pac_ops.geometry import Window

    window = Window((3, 3), (2, 2), (1, 1))
    with FakeTensorMode():
        x, centre = torch.empty(2, 4, 9, 7, device="cuda"), torch.empty(2, 4, 5, 4, device="cuda")
        kernel, wide = (torch.empty(2, 1, 3, 3, *size.shape[2:], device="cuda") for size in (centre, x))
        weight, bias = torch.empty(4, 4, 3, 3, device="cuda"), torch.empty(4, device="cuda")
        results = [
            reference.squared_distance2d(x, window),
            reference.gaussian_kernel2d(x, window),
            reference.squared_distance2d_backward(kernel, x, window),
            reference.pacconv2d(x, kernel, weight, bias, window, 1),
            *reference.pacconv2d_backward(centre, x, kernel, weight, window, 1, (True,) * 3),
            reference.pacconv_transpose2d(centre, wide, weight, bias, window, 1),
            *reference.pacconv_transpose2d_backward(x, centre, wide, weight, window, 1, (True,) * 3),
            reference.pacpool2d(x, kernel, window),
            *reference.pacpool2d_backward(centre, x, kernel, window, (True, True)),
        ]
    assert {result.device.type for result in results} == {"cuda"}


def largest_allocation(run):
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(profile_memory=True, activities=activities) as profile:
        run()
    return max(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_dilation(dtype):
    """5x5 at dilation 64 on a 500x500 map: the convolution's result, and no copy of all taps on the way there."""
    plain = nn.Conv2d(8, 8, 5, padding=128, dilation=64)
    layer = PacConv2d(8, 8, 5, padding=128, dilation=64)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to(dtype)
    x = torch.randn(1, 8, 500, 500).to(dtype).requires_grad_()
    guide = torch.full((1, 2, 500, 500), 0.5, dtype=dtype, requires_grad=True)
    out = []

    def run():
        out.append(layer(x, guide))
        out[0].sum().backward()

    largest = largest_allocation(run)
    assert 0 < largest <= 25 * 8 * 500 * 500 * 4 / 4  # K and its gradient are an eighth
    exact = x.detach().float().requires_grad_()
    plain.load_state_dict(layer.float().state_dict())
    expected = plain(exact)
    expected.sum().backward()
    assert_close(out[0].detach(), expected.detach().double(), 2 * TOLERANCE[dtype], "output")
    assert_close(x.grad, exact.grad.double(), 2 * TOLERANCE[dtype], "input")


BIG = 32  # channels, so that K and what is as large as K are small beside all taps of them


@pytest.mark.parametrize(
    ("make", "scale"),
    [
        (lambda: PacPool2d(5, 1, 2), 1),
        (lambda: PacPool2d(5, 1, 2, normalize_kernel=True, **INVERSE), 1),
        (lambda: PacConv2d(BIG, BIG, 5, padding=2), 1),
        (lambda: PacConv2d(BIG, BIG, 5, padding=2, shared_filters=True), 1),
        (lambda: PacConv2d(BIG, BIG, 5, padding=2, groups=BIG), 1),
        (lambda: PacConvTranspose2d(BIG, BIG, 5, 2, 2, 1), 2),
    ],
    ids=["pool", "pool, inverse, normalised", "convolution", "shared filters", "depthwise", "transposed"],
)
def test_layers_make_no_copies_of_all_taps(make, scale):
    layer = make()
    x = torch.randn(1, BIG, 160, 160, requires_grad=True)
    guide = torch.randn(1, BIG, 160 * scale, 160 * scale, requires_grad=True)
    largest = largest_allocation(lambda: layer(x, guide).sum().backward())
    all_taps = 25 * guide.numel() * guide.element_size()
    assert 0 < largest < all_taps / 4


@pytest.mark.parametrize(
    "options",
    [
        {"smooth_kernel_type": "gaussian"},
        {"smooth_kernel_type": "average_5"},
        {"kernel_type": "inv_0.1_0.5_asym"},
        {"kernel_type": "inv_0.1_0.5_asym", "smooth_kernel_type": "gaussian", "normalize_kernel": True},
    ],
    ids=str,
)
def test_kernels_make_no_copies_of_all_taps(options):
    guide = torch.randn(1, BIG, 160, 160, requires_grad=True)
    run = lambda: pac_ops.packernel2d(guide, None, 5, padding=2, **options)[0].sum().backward()  # noqa: E731
    all_taps = 25 * guide.numel() * guide.element_size()
    assert 0 < largest_allocation(run) < all_taps / 4
