"""`torch.compile` sees through the operators on a GPU: to the launches of their Triton kernels, traced with no GPU."""

import pretended_gpu
import pytest
import torch
from interpreted import INTERPRETED
from operator_examples import REGISTERED, arguments
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import pac_ops
from pac_ops.backends.triton import tiles
from pac_ops.backends.triton.walk import Axis

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*FP_FUSION"),
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not traced"),
]

SEEN = [op for op in REGISTERED if not op.endswith("_or_plain")]
LAUNCH = torch.ops.higher_order.triton_kernel_wrapper_functional
WRITTEN = {"out", "grad_kernel"}


def traced(function, tensors, *, device="cuda", dynamic=False, **options):
    """The graph Inductor would be given, of fake tensors like these, and the environment of their sizes."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    sizes = ShapeEnv()
    mode = FakeTensorMode(shape_env=sizes, static_shapes=not dynamic)
    fakes = [mode.from_tensor(x.detach()) for x in tensors]
    with mode, torch.no_grad():
        fakes = [x.to(device) for x in fakes]
        aot_function(function, keep, **options)(*fakes)
    return graphs[0], fakes, sizes


def call_of(op, size=(2, 5, 6), dtype=torch.float32):
    """An operator as a function of the tensors of an example call, and these tensors."""
    call = arguments(op, ([1, 1], [1, 1], [1, 1], 1), size, dtype)[0]
    places = [i for i, x in enumerate(call) if isinstance(x, torch.Tensor)]

    def run(*tensors):
        filled = list(call)
        for place, x in zip(places, tensors, strict=True):
            filled[place] = x
        return getattr(torch.ops.pac_ops, op).default(*filled)

    return run, [call[i] for i in places]


def operators_in(graph):
    return [node.target for node in graph.graph.nodes if str(node.target).startswith("pac_ops")]


@pytest.fixture(autouse=True)
def _hopper(monkeypatch):
    if not torch.cuda.is_available():
        if torch.__version__.startswith("2.8."):
            pytest.skip("torch 2.8 asks the CUDA driver also where tensors are fake")
        pretended_gpu.pretend(monkeypatch)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed sizes", "dynamic sizes"])
@pytest.mark.parametrize("op", SEEN)
def test_an_operator_is_its_launches(op, dynamic):
    """On a GPU the graph holds Triton launches, of which torch has found that they write to their outputs alone."""
    graph, _, sizes = traced(*call_of(op), dynamic=dynamic)
    launches = [node for node in graph.graph.nodes if node.target is LAUNCH]
    assert launches
    assert not operators_in(graph)
    for launch in launches:
        written = set(launch.kwargs["tensors_to_clone"])
        assert "out" in written
        assert written <= WRITTEN
    if dynamic:  # no height or width is fixed: what is, are channels, batches and windows
        fixed = [guard.expr for guard in sizes.guards if guard.expr.func.__name__ == "Equality"]
        assert all(value <= 4 for expression in fixed for value in expression.args if value.is_number)


@pytest.mark.parametrize("tuned", ["0", "1"])
def test_a_product_is_one_launch_also_where_tiles_are_to_be_timed(tuned, monkeypatch):
    monkeypatch.setenv(tiles.TUNE, tuned)
    window = ([1, 1], [1, 1], [1, 1], 1)
    x, weight, kernel = torch.empty(2, 64, 16, 16), torch.empty(64, 64, 3, 3), torch.empty(2, 1, 3, 3, 16, 16)
    graph, _, _ = traced(lambda *given: torch.ops.pac_ops.pacconv2d(*given, None, *window), [x, kernel, weight])
    assert sum(node.target is LAUNCH for node in graph.graph.nodes) == 1


@pytest.mark.parametrize("op", ["pacconv2d", "squared_distance2d"])
def test_on_the_cpu_an_operator_is_one_node(op):
    graph, _, _ = traced(*call_of(op), device="cpu")
    assert operators_in(graph) == [getattr(torch.ops.pac_ops, op).default]


@pytest.mark.parametrize("op", sorted({*REGISTERED} - {*SEEN}))
def test_what_depends_on_a_value_is_one_node_on_a_gpu(op):
    graph, _, _ = traced(*call_of(op))
    assert operators_in(graph) == [getattr(torch.ops.pac_ops, op).default]


def test_in_an_exported_program_an_operator_is_one_node():
    """Which then runs wherever the operator does."""

    class Layer(torch.nn.Module):
        def forward(self, x, guide, weight):
            kernel, _ = pac_ops.packernel2d(guide, None, 3, 1, 1)
            return pac_ops.pacconv2d(x, kernel, weight, padding=1)

    with FakeTensorMode():
        example = [torch.empty(2, 4, 8, 8, device="cuda") for _ in range(2)]
        weight = torch.empty(4, 4, 3, 3, device="cuda")
    program = torch.export.export(Layer(), (*example, weight)).run_decompositions()
    assert torch.ops.pac_ops.pacconv2d.default in operators_in(program.graph_module)


def test_constants_can_be_written_into_code():
    axis = Axis(1, 2, -1, 1, 3, 2)
    assert eval(repr(axis)) == axis  # noqa: S307


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="pretends to a GPU; benchmarks.gpu_check compiles on a real one"
)
def test_inductor_writes_code_of_the_launches(monkeypatch):
    """With the tile sizes that are shipped."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.post_grad import post_grad_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._inductor.virtualized import V

    device = DeviceProperties(type="cuda", index=0, multi_processor_count=132, cc=90, major=9, warp_size=32)
    monkeypatch.setattr(DeviceProperties, "create", classmethod(lambda *_: device))
    monkeypatch.setattr(CudaInterface, "raise_if_triton_unavailable", staticmethod(lambda *_: None))
    monkeypatch.setattr("torch._inductor.scheduler.has_triton", lambda *_: True)
    window = ([1, 1], [1, 1], [1, 1], 1)
    x, weight = torch.empty(2, 64, 16, 16), torch.empty(64, 64, 3, 3)
    kernel = torch.empty(2, 1, 3, 3, 16, 16)

    def gradients(grad, input, kernel, weight):
        return torch.ops.pac_ops.pacconv2d_backward(grad, input, kernel, weight, *window, [True] * 3)

    graph, fakes, _ = traced(gradients, [x, x, kernel, weight], decompositions=select_decomp_table())
    with V.set_fake_mode(fakes[0].fake_mode):
        post_grad_passes(graph, is_inference=True)
        lowering = GraphLowering(graph, example_inputs=fakes, is_inference=True)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*fakes)
            code = lowering.codegen()[0].value
    assert code.count("triton_heuristics.user_autotune") == 2
    assert "torch.ops.pac_ops" not in code
