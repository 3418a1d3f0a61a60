"""Every layer compiled and exported."""

import torch
from layer_cases import CASES, assert_all_close, changed, everything, floating, layers_but


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


@layers_but("conv, depthwise", "conv, mask", "pool, mask", "transpose", "transpose, groups", "transpose, inverse")
def test_compile_with_dynamic_shapes(case):
    layer = case.layer()
    torch._dynamo.reset()
    backend, graphs = counting_backend()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for size in ((2, 9, 8), (3, 11, 14), (5, 7, 6)):  # odd and even as before, for ceil_mode
        arguments = case.arguments(*size)
        assert_all_close(everything(layer, arguments, compiled), everything(layer, arguments))
    assert len(graphs) == 1


@layers_but("conv, depthwise", "conv, mask", "pool, mask", "transpose", "transpose, groups", "transpose, inverse")
def test_export_with_dynamic_batch_and_size(case):
    layer, arguments = case.layer(), case.arguments()
    auto = torch.export.Dim.AUTO
    shapes = changed(arguments, lambda x: {0: auto, 2: auto, 3: auto})
    program = torch.export.export(layer, arguments, dynamic_shapes=shapes)
    other = case.arguments(5, 11, 14)
    torch.testing.assert_close(program.module()(*other), layer(*other))
