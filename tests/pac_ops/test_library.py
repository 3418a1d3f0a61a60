"""What registration with torch.library promises: opcheck, gradients of two orders, compile, export, autocast."""

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import pac_ops
from pac_ops import PacConv2d
from pac_ops.backends import BACKENDS

OPS = torch.ops.pac_ops
CONFIGS = [
    ([1, 1], [1, 1], [1, 1], 1),
    ([2, 1], [0, 2], [1, 2], 2),
]


def tensors(config, *, requires_grad=True, dtype=torch.float64):
    stride, padding, dilation, groups = config
    v = torch.randn(2, 2, 5, 6, dtype=dtype)
    f = torch.randn(2, 2, 5, 6, dtype=dtype) / 2
    w = torch.randn(4, 2 // groups, 3, 3, dtype=dtype)
    b = torch.randn(4, dtype=dtype)
    k = pac_ops.packernel2d(f, 3, tuple(stride), tuple(padding), tuple(dilation))
    g = torch.randn(2, 4, *k.shape[-2:], dtype=dtype)
    return tuple(t.detach().requires_grad_(requires_grad) for t in (v, f, k, w, b, g))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_opcheck_every_op(config, dtype):
    v, f, k, w, b, g = tensors(config, dtype=dtype)
    *window, groups = config
    size = [3, 3]
    assert k.dtype == torch.float32
    torch.library.opcheck(OPS.squared_distance2d.default, (f, size, *window))
    torch.library.opcheck(OPS.squared_distance2d_backward.default, (k, f, size, *window))
    torch.library.opcheck(OPS.pacconv2d.default, (v, k, w, b, *window, groups))
    torch.library.opcheck(OPS.pacconv2d.default, (v, k, w, None, *window, groups))
    for needs in ([True, True, True], [False, True, False], [True, False, True]):
        torch.library.opcheck(OPS.pacconv2d_backward.default, (g, v, k, w, *window, groups, needs))


def test_every_registered_op_is_checked():
    """A new op must be added to the test above."""
    schemas = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("pac_ops::")]
    assert {name.removeprefix("pac_ops::") for name in schemas} == {
        "squared_distance2d",
        "squared_distance2d_backward",
        "pacconv2d",
        "pacconv2d_backward",
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradients_of_first_and_second_order(config, backend):
    v, f, _, w, b, _ = tensors(config)
    *window, groups = (tuple(x) if isinstance(x, list) else x for x in config)

    def layer(v, f, w, b):
        return pac_ops.pacconv2d(v, pac_ops.packernel2d(f, 3, *window), w, b, *window, groups)

    with pac_ops.use_backend(backend):
        assert gradcheck(layer, (v, f, w, b))
        assert gradgradcheck(layer, (v, f, w, b))


def test_gradient_of_third_order():
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 1, 3, 3, dtype=torch.float64)

    def total(x):  # x is input and guide at once
        return pac_ops.pacconv2d(x, pac_ops.packernel2d(x, 3, padding=1), w, padding=1).sum()

    def second(x):
        (first,) = torch.autograd.grad(total(x), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, (x,))


def example():
    torch.manual_seed(0)
    return PacConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 9, 8), torch.randn(2, 3, 9, 8)


def test_compile_in_one_graph_without_recompiling():
    layer, x, f = example()
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=counting)
    for _ in range(3):
        x, f = torch.randn_like(x), torch.randn_like(f)
        torch.testing.assert_close(compiled(x, f), layer(x, f))
    assert len(graphs) == 1


def test_compile_with_gradients_and_dynamic_shapes():
    layer, _, _ = example()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 9, 8), (3, 12, 5)):
        x, f = torch.randn(size[0], 4, *size[1:]), torch.randn(size[0], 3, *size[1:])
        a, b = f.clone().requires_grad_(), f.clone().requires_grad_()
        out, expected = compiled(x, a), layer(x, b)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)


def test_export_with_dynamic_batch_and_size():
    layer, x, f = example()
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto}, {0: auto, 2: auto, 3: auto})
    program = torch.export.export(layer, (x, f), dynamic_shapes=shapes)
    x, f = torch.randn(5, 4, 7, 11), torch.randn(5, 3, 7, 11)
    torch.testing.assert_close(program.module()(x, f), layer(x, f))


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_narrows_all_but_k(compiled):
    layer, x, f = example()
    torch._dynamo.reset()
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    expected = layer(x, f)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pac_ops.packernel2d(f.bfloat16(), 3).dtype == torch.float32
        out = run(x, f)
        assert out.dtype == torch.bfloat16
        assert nn_conv_dtype(x) == torch.bfloat16  # as the stock convolution's
    assert (out.float() - expected).norm() / expected.norm() < 0.02
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def nn_conv_dtype(x):
    return torch.nn.Conv2d(4, 6, 3)(x).dtype


def test_autocast_leaves_float64_alone():
    layer, x, f = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.double()(x.double(), f.double()).dtype == torch.float64


def test_deepcopy_and_pickle():
    layer, x, f = example()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x, f), layer(x, f))


def test_functional_call():
    layer, x, f = example()
    doubled = {name: 2 * p for name, p in layer.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(layer, doubled, (x, f)), 2 * layer(x, f))


def test_no_copies_of_all_taps():
    """The memory a training step takes, beyond what it must return, stays far under one copy of all 25 taps."""
    x = torch.randn(1, 16, 256, 256, requires_grad=True)
    f = torch.randn(1, 4, 256, 256)
    w = torch.randn(16, 16, 5, 5, requires_grad=True)
    kernel = pac_ops.packernel2d(f, 5, padding=2)
    largest = 0
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pac_ops.pacconv2d(x, kernel, w, padding=2).sum().backward()
    for event in profile.events():
        largest = max(largest, event.self_cpu_memory_usage)
    all_taps = 25 * x.numel() * x.element_size()
    assert 0 < largest < all_taps / 4
