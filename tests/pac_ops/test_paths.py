"""Every path PyTorch has, taken by every layer: dtypes, layouts, compile, export, torch.func, copies, DDP and so on."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import forks
import pytest
import torch
from devices import needs_fake_cuda
from oracle import PLAIN, TOLERANCE, assert_close
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import pac_ops
from pac_ops import PacConv2d, PacConvTranspose2d, PacPool2d
from pac_ops.backends.choose import backend_for

NARROW = [torch.float16, torch.bfloat16]
ASYMMETRIC = {"kernel_type": "inv_0.2_0.7_asym", "smooth_kernel_type": "full_3", "normalize_kernel": True}
INVERSE = {"kernel_type": "inv_0.2_0.7"}


@dataclass(frozen=True)
class Case:
    """A layer, its counterpart in torch.nn, and what it is called with."""

    make: Callable[..., nn.Module]  # takes device and dtype
    stock: Callable[..., nn.Module]  # makes the same output size, with the same numbers of channels
    masked: bool = False
    guide_channels: int = 3

    def layer(self, **where):
        torch.manual_seed(1)
        return self.make(**where)

    def arguments(self, batch=2, height=9, width=8, dtype=torch.float32, channels=4):
        """input, guide, no kernel, and a mask or None: what the layer takes, in its order."""
        generator = torch.Generator().manual_seed(batch + height)
        plain = self.stock()
        size = (height, width)
        if isinstance(plain, nn.ConvTranspose2d):
            size = plain(torch.zeros(1, plain.in_channels, height, width)).shape[2:]
        x = torch.randn(batch, channels, height, width, generator=generator)
        guide = torch.randn(batch, self.guide_channels, *size, generator=generator) / 2
        mask = torch.rand(batch, 1, height, width, generator=generator) > 0.2
        return x.to(dtype), guide.to(dtype), None, mask if self.masked else None


CASES = {
    "conv": Case(lambda **w: PacConv2d(4, 6, 3, padding=1, **w), lambda **w: nn.Conv2d(4, 6, 3, padding=1, **w)),
    "conv, depthwise": Case(
        lambda **w: PacConv2d(4, 8, (3, 5), (2, 1), (1, 2), groups=4, **w),
        lambda **w: nn.Conv2d(4, 8, (3, 5), (2, 1), (1, 2), groups=4, **w),
    ),
    "conv, shared filters": Case(
        lambda **w: PacConv2d(4, 4, 3, padding=1, shared_filters=True, **w),
        lambda **w: nn.Conv2d(4, 4, 3, padding=1, groups=4, **w),
    ),
    "conv, reflect": Case(
        lambda **w: PacConv2d(4, 6, 3, padding="same", padding_mode="reflect", **w),
        lambda **w: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", **w),
    ),
    "conv, asymmetric": Case(
        lambda **w: PacConv2d(4, 6, 3, padding=1, **ASYMMETRIC, **w), lambda **w: nn.Conv2d(4, 6, 3, padding=1, **w)
    ),
    "conv, mask": Case(
        lambda **w: PacConv2d(4, 6, 3, padding=2, dilation=2, **w),
        lambda **w: nn.Conv2d(4, 6, 3, padding=2, dilation=2, **w),
        masked=True,
    ),
    "transpose": Case(
        lambda **w: PacConvTranspose2d(4, 6, 5, 2, 2, 1, **w), lambda **w: nn.ConvTranspose2d(4, 6, 5, 2, 2, 1, **w)
    ),
    "transpose, groups": Case(
        lambda **w: PacConvTranspose2d(4, 6, 3, 2, groups=2, **w),
        lambda **w: nn.ConvTranspose2d(4, 6, 3, 2, groups=2, **w),
    ),
    "transpose, inverse": Case(
        lambda **w: PacConvTranspose2d(4, 6, 3, 2, 1, 1, **INVERSE, **w),
        lambda **w: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, **w),
    ),
    "transpose, mask": Case(
        lambda **w: PacConvTranspose2d(4, 6, 5, 2, 2, 1, normalize_kernel=True, **w),
        lambda **w: nn.ConvTranspose2d(4, 6, 5, 2, 2, 1, **w),
        masked=True,
    ),
    "pool": Case(lambda **w: PacPool2d(3, 2, 1, **w), lambda **w: nn.AvgPool2d(3, 2, 1)),
    "pool, channel-wise": Case(
        lambda **w: PacPool2d(3, 1, 1, channel_wise=True, channels=4, **INVERSE, **w),
        lambda **w: nn.AvgPool2d(3, 1, 1),
        guide_channels=4,
    ),
    "pool, ceil": Case(
        lambda **w: PacPool2d(3, 2, 1, ceil_mode=True, normalize_kernel=True, **w),
        lambda **w: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    ),
    "pool, mask": Case(lambda **w: PacPool2d(3, **w), lambda **w: nn.AvgPool2d(3), masked=True),
}


def layers_but(*names):
    """All layers but these, which repeat what others meet: they are run with `-m slow`."""
    assert CASES.keys() >= set(names)
    marked = [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if name in names else []) for name, case in CASES.items()
    ]
    return pytest.mark.parametrize("case", marked)


LEARNING = {name: case for name, case in CASES.items() if list(case.make().parameters())}
every_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_learning_layer = pytest.mark.parametrize("case", LEARNING.values(), ids=LEARNING)


def output(result):
    """A layer's output, without the output mask."""
    return result[0] if isinstance(result, tuple) else result


def changed(arguments, change):
    """The arguments, each tensor changed."""
    return tuple(None if x is None else change(x) for x in arguments)


def floating(change):
    """A change of all but masks."""
    return lambda x: change(x) if x.is_floating_point() else x


def everything(layer, arguments, run=None, wanted=("input", "guide")):
    """The output of a layer (or of `run` with its parameters), and the gradient of everything that has one."""
    named = dict(zip(("input", "guide", "kernel", "mask"), arguments, strict=True))
    named |= {name: named[name].detach().requires_grad_() for name in wanted}
    out = output((layer if run is None else run)(*named.values()))
    leaves = {name: named[name] for name in wanted} | dict(layer.named_parameters())
    # Quarters, which every dtype has exactly.
    incoming = torch.randint(-4, 5, out.shape, generator=torch.Generator().manual_seed(0)) / 4
    gradients = torch.autograd.grad(out, tuple(leaves.values()), incoming.to(out.dtype))
    return {"output": out.detach()} | dict(zip(leaves, gradients, strict=True))


def assert_all_close(actual, expected, held_to=torch.float32):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value.double(), held_to, name, floor=1e-6)


def test_every_parameter_and_mask_is_in_the_table():
    """The table has what the tests below are to meet: learnable numbers of every kind, and a mask for every layer."""
    learnable = {name for case in CASES.values() for name, _ in case.layer().named_parameters()}
    assert learnable == {"weight", "bias", "inv_alpha", "inv_lambda", "smooth_kernel"}
    assert {type(case.layer()) for case in CASES.values() if case.masked} == {
        PacConv2d,
        PacConvTranspose2d,
        PacPool2d,
    }


# --- dtypes -----------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *NARROW], ids=str)
def test_dtypes(dtype, case):
    layer, arguments = case.layer().to(dtype), case.arguments(dtype=dtype)
    found = everything(layer, arguments)
    assert {value.dtype for value in found.values()} == {dtype}
    expected = everything(layer.double(), changed(arguments, floating(Tensor.double)))
    # Padding by reflection, a bias added to a pooling and gradients take a second rounding to a narrow dtype.
    assert_all_close(found, expected, 2 * TOLERANCE[dtype])


def spy_on_kernels(monkeypatch):
    """The dtypes of every K that a layer makes from here on."""
    dtypes = []

    def packernel2d(*arguments, **options):
        made = pac_ops.packernel2d(*arguments, **options)
        dtypes.append(made[0].dtype)
        return made

    monkeypatch.setattr(pac_ops.layers.adapting, "packernel2d", packernel2d)
    return dtypes


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(dtype, case, monkeypatch):
    kernels = spy_on_kernels(monkeypatch)
    layer, arguments = case.layer(), case.arguments(dtype=dtype)  # bfloat16 where another layer made it

    def run(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(*arguments)

    found = everything(layer, arguments, run)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert found["output"].dtype == case.stock()(arguments[0]).dtype
    assert kernels == [torch.float32]
    assert {found[name].dtype for name in ("input", "guide")} == {dtype}
    assert {found[name].dtype for name, _ in layer.named_parameters()} <= {torch.float32}
    expected = everything(layer.double(), changed(arguments, floating(Tensor.double)))
    for name, value in expected.items():
        # bfloat16 rounds at 0.004; in the gradient of a single number the terms half cancel.
        assert (found[name] - value).norm() <= (0.02 if value.dim() else 0.05) * value.norm(), name


# --- layouts and sizes ------------------------------------------------------------------------------------


def every_second_column(x):
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


def with_the_batch_last(x):
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


LAYOUTS = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second column": every_second_column,
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": with_the_batch_last,
    "one image for all": lambda x: x[:1].expand(x.shape),
    "one channel for all": lambda x: x[:, :1].expand(x.shape),
    "one pixel for all": lambda x: x[..., :1, :1].expand(x.shape),
}


@every_layer
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout, case):
    layer = case.layer()
    laid_out = changed(case.arguments(), layout)
    assert not laid_out[0].is_contiguous()
    found = everything(layer, laid_out)
    assert_all_close(found, everything(layer, changed(laid_out, Tensor.contiguous)))
    assert found["output"].is_contiguous()


@every_learning_layer
def test_channels_last_layers(case):
    layer, arguments = case.layer(), case.arguments()
    expected = everything(layer, arguments)
    layer = layer.to(memory_format=torch.channels_last)
    assert_all_close(everything(layer, changed(arguments, LAYOUTS["channels-last"])), expected)


@pytest.mark.parametrize("make", [every_second_column, lambda k: k[..., :1, :1].expand(k.shape)])
def test_layouts_of_a_kernel_made_beforehand(make):
    layer, (x, guide, _, _) = CASES["conv"].layer(), CASES["conv"].arguments()
    kernel = make(pac_ops.packernel2d(guide, padding=1)[0])
    torch.testing.assert_close(layer(x, None, kernel), layer(x, None, kernel.contiguous()))
    for dtype in NARROW:  # K stays float32
        found = copy.deepcopy(layer).to(dtype)(x.to(dtype), None, kernel)
        assert found.dtype == dtype
        assert (found - layer(x, None, kernel)).norm() < 0.02 * found.norm()


@every_layer
def test_incoming_gradients_of_any_layout(case):
    layer, (x, guide, _, mask) = case.layer(), case.arguments()
    found = []
    for layout in (Tensor.contiguous, *LAYOUTS.values()):
        leaves = x.clone().requires_grad_(), guide.clone().requires_grad_()
        out = output(layer(*leaves, None, mask))
        if layout is LAYOUTS["one pixel for all"]:
            found.append(torch.autograd.grad(out.sum(), leaves))  # autograd's own expanded tensor
            expected = torch.autograd.grad(output(layer(*leaves, None, mask)), leaves, torch.ones_like(out))
        else:
            incoming = layout(torch.ones_like(out))
            found.append(torch.autograd.grad(out, leaves, incoming))
    for gradients in found:
        torch.testing.assert_close(gradients, expected)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_empty_batch(dtype, case):
    layer, arguments = case.layer().to(dtype), case.arguments(batch=0, dtype=dtype)
    found = everything(layer, arguments)
    assert found["output"].shape == case.stock()(arguments[0].float()).shape
    for name, leaf in zip(("input", "guide"), arguments, strict=False):
        assert found[name].shape == leaf.shape
    for name, parameter in layer.named_parameters():
        assert torch.equal(found[name], torch.zeros_like(parameter)), name


@pytest.mark.parametrize("backend", ["native", *PLAIN])
@pytest.mark.parametrize("make", [PacConv2d, PacConvTranspose2d])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_an_input_without_channels(make, backend):
    """Every sum is empty: only the bias remains."""
    layer = make(0, 4, 3, padding=1)
    x, guide = torch.zeros(2, 0, 5, 6, requires_grad=True), torch.randn(2, 3, 5, 6, requires_grad=True)
    with pac_ops.use_backend(backend):
        out = layer(x, guide)
        out.sum().backward()
    assert torch.equal(out, layer.bias[:, None, None].expand(2, 4, 5, 6))
    assert not guide.grad.any()


def test_pooling_without_channels():
    x, guide = torch.zeros(2, 0, 5, 6, requires_grad=True), torch.randn(2, 3, 5, 6)
    out = PacPool2d(3)(x, guide)
    out.sum().backward()
    assert out.shape == (2, 0, 1, 2)
    assert x.grad.shape == x.shape


# --- torch.compile and torch.export -----------------------------------------------------------------------


def counting_backend():
    """A backend as aot_eager, and the list of the graphs it was given."""
    graphs = []
    compile_graph = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph, inputs, **options):
        graphs.append(graph)
        return compile_graph(graph, inputs, **options)

    return backend, graphs


@layers_but(*(CASES.keys() - {"conv", "conv, mask", "transpose, inverse", "pool, channel-wise"}))
def test_compile_once_for_batches_of_one_shape(case):
    layer = case.layer()
    torch._dynamo.reset()
    backend, graphs = counting_backend()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for seed in range(3):
        arguments = changed(case.arguments(), floating(lambda x, seed=seed: x + 0.1 * seed))
        assert_all_close(everything(layer, arguments, compiled), everything(layer, arguments))
    assert len(graphs) == 1


@layers_but("pool, mask", "transpose, groups", "transpose, inverse")
def test_compile_with_dynamic_shapes(case):
    layer = case.layer()
    torch._dynamo.reset()
    backend, graphs = counting_backend()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for size in ((2, 9, 8), (3, 11, 14), (5, 7, 6)):  # odd and even as before, for ceil_mode
        arguments = case.arguments(*size)
        assert_all_close(everything(layer, arguments, compiled), everything(layer, arguments))
    assert len(graphs) == 1


@layers_but("pool, mask", "transpose, groups", "transpose, inverse")
def test_export_with_dynamic_batch_and_size(case):
    layer, arguments = case.layer(), case.arguments()
    auto = torch.export.Dim.AUTO
    shapes = changed(arguments, lambda x: {0: auto, 2: auto, 3: auto})
    program = torch.export.export(layer, arguments, dynamic_shapes=shapes)
    other = case.arguments(5, 11, 14)
    torch.testing.assert_close(program.module()(*other), layer(*other))


# --- torch.func -------------------------------------------------------------------------------------------


def stacked(case, count):
    """The arguments of several calls, stacked: [count, B, ...]."""
    calls = [case.arguments(height=9, batch=2) for _ in range(count)]
    calls = [changed(call, floating(lambda x, n=n: x + 0.3 * n)) for n, call in enumerate(calls)]
    return calls, tuple(None if xs[0] is None else torch.stack(xs) for xs in zip(*calls, strict=True))


@every_layer
def test_functional_call(case):
    layer, arguments = case.layer(), case.arguments()
    torch.manual_seed(2)
    other = case.make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    state = dict(other.named_parameters()) | dict(other.named_buffers())
    assert torch.equal(output(functional_call(layer, state, arguments)), output(other(*arguments)))


@every_layer
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_vmap_over_input_and_guide(dim, case):
    layer = case.layer()
    calls, together = stacked(case, 3)
    in_dims = tuple(None if x is None else dim for x in together)
    moved = changed(together, lambda x: x.movedim(0, dim))
    found = vmap(layer, in_dims)(*moved)
    expected = [layer(*call) for call in calls]
    torch.testing.assert_close(output(found), torch.stack([output(out) for out in expected]))
    if case.masked:
        assert torch.equal(found[1], torch.stack([out[1] for out in expected]))


@every_layer
@pytest.mark.parametrize("mapped", ["input", "guide"])
def test_vmap_over_one_of_them(mapped, case):
    layer = case.layer()
    calls, together = stacked(case, 3)
    which = ("input", "guide").index(mapped)
    in_dims = tuple(0 if n == which else None for n in range(4))
    arguments = tuple(x if n == which else calls[0][n] for n, x in enumerate(together))
    found = output(vmap(layer, in_dims)(*arguments))
    for n, call in enumerate(calls):
        one = tuple(call[k] if k == which else calls[0][k] for k in range(4))
        torch.testing.assert_close(found[n], output(layer(*one)))


@every_layer
def test_vmap_in_vmap(case):
    layer, arguments = case.layer(), case.arguments(batch=6)
    folded = changed(arguments, lambda x: x.unflatten(0, (3, 2))[:, :, None])
    in_dims = tuple(None if x is None else 0 for x in arguments)
    found = vmap(vmap(layer, in_dims), in_dims)(*folded)
    torch.testing.assert_close(output(found).flatten(0, 2), output(layer(*arguments)))


@every_learning_layer
def test_vmap_over_weights(case):
    """An ensemble: the parameters stacked, every member on the same batch or on a batch of its own."""
    layers = [case.make() for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    calls, together = stacked(case, 3)

    def run(parameters, buffers, *arguments):
        return output(functional_call(layers[0], (parameters, buffers), arguments))

    own = tuple(None if x is None else 0 for x in together)
    same = vmap(run, (0, 0, None, None, None, None))(parameters, buffers, *calls[0])
    each = vmap(run, (0, 0, *own))(parameters, buffers, *together)
    for n, layer in enumerate(layers):
        torch.testing.assert_close(same[n], output(layer(*calls[0])))
        torch.testing.assert_close(each[n], output(layer(*calls[n])))


def detached(layer):
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


@every_layer
def test_gradients_of_each_sample(case):
    layer, arguments = case.layer(), case.arguments(batch=4)

    def loss(parameters, *sample):
        batch = changed(sample, lambda x: x[None])
        return output(functional_call(layer, parameters, batch)).square().sum()

    parameters = detached(layer)
    of_one = grad(loss, (0, 1, 2) if parameters else (1, 2))
    in_dims = (None, *(None if x is None else 0 for x in arguments))
    found = vmap(of_one, in_dims)(parameters, *arguments)
    expected = [of_one(parameters, *changed(arguments, lambda x, n=n: x[n])) for n in range(4)]
    flat, spec = torch.utils._pytree.tree_flatten(found)
    for n, one in enumerate(expected):
        torch.testing.assert_close(spec.unflatten([x[n] for x in flat]), one, rtol=1e-4, atol=1e-4)


@every_layer
def test_jacobians(case):
    layer, (x, guide, _, mask) = case.layer().double(), case.arguments(1, 4, 5, torch.float64)
    names = tuple(detached(layer))

    def run(x, guide, *values):
        parameters = dict(zip(names, values, strict=True))
        return output(functional_call(layer, parameters, (x, guide, None, mask))).sum(dim=1)

    leaves = (x, guide, *detached(layer).values())
    found = jacrev(run, tuple(range(len(leaves))))(*leaves)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(run, leaves))


@every_layer
def test_hessians(case):
    """Of the guide: reverse over reverse, through vmap twice."""
    layer, (x, guide, _, mask) = case.layer().double(), case.arguments(1, 3, 3, torch.float64)

    def loss(first):  # the guide's first channel
        return output(layer(x, torch.cat([first, guide[:, 1:]], 1), None, mask)).square().sum()

    first = guide[:, :1]
    found = jacrev(jacrev(loss))(first)
    torch.testing.assert_close(found, torch.autograd.functional.hessian(loss, first))


@every_layer
@pytest.mark.parametrize("tangent", ["input", "guide"])
def test_forward_mode(tangent, case):
    """Operators of torch.library drop tangents without a word unless something is done about it."""
    layer = case.layer().double().requires_grad_(False)
    x, guide, _, mask = case.arguments(1, dtype=torch.float64)

    def run(moved):
        return output(layer(moved, guide, None, mask) if tangent == "input" else layer(x, moved, None, mask))

    at = x if tangent == "input" else guide
    expected = (run(at + 1e-6 * at) - run(at - 1e-6 * at)) / 2e-6
    for forward in (in_functorch, in_autograd):
        found = forward(run, at)
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def in_functorch(run, at):
    return torch.func.jvp(run, (at,), (at,))[1]


def in_autograd(run, at):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(run(torch.autograd.forward_ad.make_dual(at, at))).tangent


# --- copies and moves -------------------------------------------------------------------------------------


def by_torch_save(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@every_layer
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), by_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies(copied, case):
    layer, arguments = case.layer(), case.arguments()
    expected = everything(layer, arguments)  # copied after use
    assert_all_close(everything(copied(layer), arguments), expected)
    assert repr(copied(layer)) == repr(layer)


@every_layer
def test_state_dict_saved_and_loaded(case):
    layer, arguments = case.layer(), case.arguments()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    other = case.make()
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(output(other(*arguments)), output(layer(*arguments)))
    empty = case.make(device="meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(output(empty(*arguments)), output(layer(*arguments)))


@every_layer
@pytest.mark.parametrize("made", ["there", "moved"])
def test_on_meta(made, case):
    layer = case.make(device="meta", dtype=torch.float16) if made == "there" else case.make().half().to("meta")
    assert {(x.device.type, x.dtype) for x in layer.state_dict().values()} <= {("meta", torch.float16)}
    arguments = case.arguments(dtype=torch.float16)
    expected = output(case.layer().half()(*arguments))
    found = everything_on_meta(layer, changed(arguments, lambda x: x.to("meta")))
    assert (found.shape, found.dtype, found.device.type) == (expected.shape, expected.dtype, "meta")


def everything_on_meta(layer, arguments):
    x, guide = (x.requires_grad_() for x in arguments[:2])
    out = output(layer(x, guide, *arguments[2:]))
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert guide.grad.shape == guide.shape
    return out.detach()


@every_layer
def test_half_and_double_reach_every_tensor(case):
    layer = case.layer()
    for dtype, move in ((torch.float16, nn.Module.half), (torch.float64, nn.Module.double)):
        assert {x.dtype for x in move(layer).state_dict().values()} <= {dtype}


# --- training ---------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, case):
    layer, arguments = case.layer(), case.arguments()
    run = lambda *arguments: checkpoint(layer, *arguments, use_reentrant=reentrant)  # noqa: E731
    assert_all_close(everything_by_backward(layer, arguments, run), everything(layer, arguments))


def everything_by_backward(layer, arguments, run):
    """As `everything`, by backward(): reentrant checkpoints refuse torch.autograd.grad."""
    x, guide = (x.detach().requires_grad_() for x in arguments[:2])
    out = output(run(x, guide, *arguments[2:]))
    incoming = torch.randint(-4, 5, out.shape, generator=torch.Generator().manual_seed(0)) / 4
    out.backward(incoming)
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    return {"output": out.detach(), "input": x.grad, "guide": guide.grad} | gradients


@pytest.fixture
def deterministic():
    """Which also fills what is allocated and not written with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_deterministic_algorithms(dtype, case, deterministic):
    layer, arguments = case.layer().to(dtype), case.arguments(dtype=dtype)
    once, again = (everything(layer, arguments) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    usual = everything(layer, arguments)
    for name, value in once.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(value, usual[name]), name


@every_layer
def test_without_gradients(case):
    layer, arguments = case.layer(), case.arguments()
    expected = output(layer(*arguments)).detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = output(layer(*arguments))
        assert torch.equal(found, expected)
        assert not found.requires_grad
    layer.requires_grad_(False)
    assert not output(layer(*arguments)).requires_grad


class Calls(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        seen.append(str(function))
        return function(*arguments, **(options or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        seen.append(str(function))
        return function(*arguments, **(options or {}))


class Watched(Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        seen.append(str(function))
        return super().__torch_function__(function, types, arguments, options or {})


seen: list[str] = []


def by_the_profiler(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    seen.extend(event.key.replace("::", ".") for event in profile.key_averages())


def by_a_mode(mode):
    def watch(run):
        with mode():
            run()

    return watch


def by_a_subclass(run):
    run(lambda x: x.as_subclass(Watched))


@every_layer
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("watch", [by_a_mode(Calls), by_a_mode(Functions), by_the_profiler, by_a_subclass])
def test_who_watches_sees_the_operators(watch, gradients, case):
    """Where nothing watches and no gradient is wanted, kernels are called at once."""
    layer, arguments = case.layer(), case.arguments()

    def run(changed_to=lambda x: x):
        with torch.set_grad_enabled(gradients):
            layer(*changed(arguments, floating(changed_to)))

    seen.clear()
    watch(run)
    assert any(name.startswith("pac_ops.") for name in seen)


@every_layer
@pytest.mark.parametrize("wanted", ["input", "guide"])
def test_gradient_of_one_of_them(wanted, case):
    layer, arguments = case.layer(), case.arguments()
    both = everything(layer, arguments)
    found = everything(layer, arguments, wanted=(wanted,))
    assert_all_close(found, {name: value for name, value in both.items() if name in found})
    layer.requires_grad_(False)
    x = {"input": arguments[0], "guide": arguments[1]}
    x[wanted] = x[wanted].clone().requires_grad_()
    output(layer(x["input"], x["guide"], None, arguments[3])).sum().backward()
    assert x[wanted].grad.isfinite().all()


@every_layer
def test_data_parallel(case):
    layer, arguments = case.layer(), case.arguments()
    assert torch.equal(output(nn.DataParallel(layer)(*arguments)), output(layer(*arguments)))


DISTRIBUTED = CASES["conv, asymmetric"]


def train_in_a_process(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # DDP gives everyone the first process's parameters
    layer = DISTRIBUTED.make()
    parallel = nn.parallel.DistributedDataParallel(layer)
    x, guide, _, _ = changed(DISTRIBUTED.arguments(batch=4), lambda x: x[2 * rank : 2 * rank + 2])
    parallel(x, guide).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    torch.save((layer.state_dict(), gradients), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    forks.both(train_in_a_process, str(tmp_path))
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    layer = DISTRIBUTED.make()
    layer.load_state_dict(saved[0][0])
    (layer(*DISTRIBUTED.arguments(batch=4)).square().sum() / 2).backward()  # DDP's gradient is the mean
    for _, gradients in saved:
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


# --- other devices ----------------------------------------------------------------------------------------


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
            reference.centred_distance2d(centre, x, window, True),
            *reference.centred_distance2d_backward(kernel, centre, x, window, True),
            reference.pacconv2d(x, kernel, weight, bias, window, 1),
            *reference.pacconv2d_backward(centre, x, kernel, weight, window, 1, (True,) * 3),
            reference.pacconv_transpose2d(centre, wide, weight, bias, window, 1),
            *reference.pacconv_transpose2d_backward(x, centre, wide, weight, window, 1, (True,) * 3),
            reference.pacpool2d(x, kernel, window),
            *reference.pacpool2d_backward(centre, x, kernel, window, (True, True)),
        ]
    assert {result.device.type for result in results} == {"cuda"}


# --- memory -----------------------------------------------------------------------------------------------


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
        (lambda: PacConv2d(BIG, BIG, 5, padding=2, shared_filters=True), 1),
        (lambda: PacConv2d(BIG, BIG, 5, padding=2, groups=BIG), 1),
        (lambda: PacConvTranspose2d(BIG, BIG, 5, 2, 2, 1), 2),
    ],
    ids=["pool", "pool, inverse, normalised", "shared filters", "depthwise", "transposed"],
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
