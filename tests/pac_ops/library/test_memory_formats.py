"""Channels-last comes out as it came in: of every operator, with values and without."""

import pytest
import torch
from operator_examples import CONFIGS, OPS, REGISTERED, arguments
from oracle import PLAIN

import pac_ops
from pac_ops import formats as memory_formats

LAST = torch.channels_last


def laid(call, *, images=True, weights=True):
    """An example call with its images, its weights or both channels-last."""

    def lay(x, number):
        if not isinstance(x, torch.Tensor) or x.dim() != 4:
            return x
        weight = number > 1 and x.shape[2:] == (3, 3)
        return x.detach().contiguous(memory_format=LAST) if (weights if weight else images) else x.detach()

    return [lay(x, number) for number, x in enumerate(call)]


def formats(result):
    results = [result] if isinstance(result, torch.Tensor) else result
    return [x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous() for x in results]


@pytest.mark.parametrize("op", REGISTERED)
def test_what_an_operator_returns_is_known_without_its_values(op):
    run = getattr(OPS, op).default
    for call in arguments(op, CONFIGS[0], (2, 5, 6), torch.float32):
        for given in (laid(call), laid(call, images=False), laid(call, weights=False)):
            expected = formats(run(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in given)))
            for backend in PLAIN:
                with pac_ops.use_backend(backend):
                    assert formats(run(*given)) == expected


@pytest.mark.parametrize("op", ["pacconv2d", "pacconv_transpose2d", "pacpool2d", "pacresize2d"])
@pytest.mark.parametrize("images", [False, True])
def test_an_image_comes_out_as_it_came_in(op, images):
    """But a convolution's also channels-last where its weight is, as `torch.nn.Conv2d`'s."""
    call = arguments(op, CONFIGS[0], (2, 5, 6), torch.float32)[0]
    run = getattr(OPS, op).default
    assert formats(run(*laid(call, images=images, weights=False))) == [images]
    assert formats(run(*laid(call, images=images, weights=True))) == [images or op.startswith("pacconv")]
    torch.testing.assert_close(run(*laid(call, images=images)), run(*call))


def test_gradients_have_the_format_of_what_they_are_of():
    v, k, w, *rest = arguments("pacconv2d", CONFIGS[0], (2, 5, 6), torch.float32)[0]
    expected = torch.autograd.grad(OPS.pacconv2d(v, k, w, *rest).square().sum(), (v, k, w))
    for images in (False, True):
        for weights in (False, True):
            leaves = [x.requires_grad_() for x in laid((v, k, w), images=images, weights=weights)]
            actual = torch.autograd.grad(pac_ops.pacconv2d(*leaves, rest[0], padding=1).square().sum(), leaves)
            assert formats(actual) == [images, False, weights]
            torch.testing.assert_close(actual, expected)


def test_a_part_of_a_wider_image():
    """Cut out of a channels-last one, it is channels-last still."""
    x = torch.randn(1, 4, 8, 9).contiguous(memory_format=LAST)[:, :, 1:-1, 2:]
    kernel, _ = pac_ops.packernel2d(x, None, 3, padding=1)
    assert kernel.is_contiguous()
    assert pac_ops.pacconv2d(x, kernel, torch.randn(5, 4, 3, 3), padding=1).is_contiguous(memory_format=LAST)
    assert pac_ops.pacconv2d(x.contiguous(), kernel, torch.randn(5, 4, 3, 3), padding=1).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(3, 20, 21, 17), (1, 3, 60, 61), (2, 300, 4, 3)], ids=str)
def test_images_that_are_copied_as_matrices(size, dtype):
    """They are large enough for PyTorch's transposed copy; and one that is cut out of a wider one."""
    x = torch.randn(size).to(dtype)
    last = x.contiguous(memory_format=LAST)
    wider = torch.randn(*size[:3], size[3] + 2).to(dtype).contiguous(memory_format=LAST)
    for given in (last, wider[..., 1:-1]):
        actual = memory_formats.contiguous(given)
        assert actual.is_contiguous()
        assert torch.equal(actual, given)
    for given in (x, wider[..., 1:-1], last):
        actual = memory_formats.like(given, last)
        assert actual.is_contiguous(memory_format=LAST)
        assert torch.equal(actual, given)
    assert memory_formats.like(x, x) is x
    assert memory_formats.contiguous(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_images_give_the_same_in_either_format(dtype):
    shape = (2, 16, 33, 35)
    x, grad, weight = (torch.randn(n).to(dtype) for n in (shape, shape, (16, 16, 3, 3)))
    guide, kernel = torch.randn(2, 4, 66, 70).to(dtype), torch.rand(2, 1, 3, 3, 33, 35)
    calls = {
        "pacconv2d": (lambda v: pac_ops.pacconv2d(v, kernel, weight, padding=1), x),
        "pacpool2d": (lambda v: pac_ops.pacpool2d(v, kernel, 3, padding=1), x),
        "packernel2d": (lambda f: pac_ops.packernel2d(f, None, 3, padding=1)[0], x),
        "pacresize2d": (lambda v: pac_ops.pacresize2d(v, guide), x),
        "its guide": (lambda f: pac_ops.pacresize2d(grad[:, :, ::2, ::2].contiguous(), f), x),
    }
    for name, (run, image) in calls.items():
        found = []
        for form in (torch.contiguous_format, LAST):
            leaf = image.detach().contiguous(memory_format=form).requires_grad_()
            out = run(leaf)
            pull = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
            laid = pull.contiguous(memory_format=form) if pull.dim() == 4 else pull
            (gradient,) = torch.autograd.grad(out, leaf, laid)
            assert gradient.is_contiguous(memory_format=form), name
            found.append((out, gradient))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, msg=lambda said, name=name: f"{name}: {said}")
