"""GraphModules: networks that are a graph already, as ONNX importers and `create_feature_extractor` give them.

Such a module is not traced by running its generated code: its graph is gone through, so that the functions it calls
stay single steps whatever they do.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.fx
from torch import nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer

from hotswap.network.copying import graphs

GRAPH = "_graph"  # the attribute of the one whose code runs
TRAINING, EVALUATION = "train_graph", "eval_graph"  # those of torchvision's, which have one for each mode


def by_mode(module: nn.Module) -> bool:
    """Whether a module is a GraphModule with one graph for each mode."""
    return isinstance(module, GraphModule) and {TRAINING, EVALUATION} <= graphs(module).keys()


def graph_of(module: GraphModule) -> Graph:
    """The graph of a GraphModule, in its current mode."""
    held = graphs(module)
    return held[TRAINING if module.training else EVALUATION] if by_mode(module) else held[GRAPH]


@contextmanager
def graphs_of_modes(model: nn.Module) -> Iterator[None]:
    """Have GraphModules with one graph for each mode run the graph of their current mode; undo that in the end."""
    held = {module: module.graph for module in model.modules() if isinstance(module, GraphModule) and by_mode(module)}
    try:
        for module in held:
            _run(module, graph_of(module))
        yield
    finally:
        for module, graph in held.items():
            _run(module, graph)


def _run(module: GraphModule, graph: Graph) -> None:
    if module.graph is not graph:
        module.graph = graph


def is_stale(module: GraphModule) -> bool:
    """Whether the graph was edited without `recompile`, so that the code runs something else."""
    return bool(module.graph.python_code("self").src != module.code)


# --- tracing --------------------------------------------------------------------------------------------------


def placeholders(module: GraphModule, tracer: Tracer) -> list[Proxy]:
    """The inputs of a GraphModule as new placeholders in a tracer's graph."""
    nodes = [node for node in graph_of(module).nodes if node.op == "placeholder"]
    return [tracer.create_proxy(node.op, node.target, node.args, {}, node.name, node.type) for node in nodes]


def stepped(module: GraphModule, tracer: Tracer) -> Callable[..., Any]:
    """A function of a GraphModule's placeholders that runs its graph node by node, for a tracer.

    Modules are called, and so opened or not by the tracer; all else stays one step.
    """
    graph, path = graph_of(module), tracer.path_of_module(module)

    def forward(*given: Any) -> Any:
        inputs = iter(given)
        values: dict[Node, Any] = {}
        for node in graph.nodes:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "output":
                break
            if node.op == "placeholder":
                values[node] = next(inputs)
            elif node.op == "call_module":
                values[node] = module.get_submodule(node.target)(*args, **kwargs)
            else:
                target = f"{path}.{node.target}" if node.op == "get_attr" and path else node.target
                values[node] = proxy = tracer.create_proxy(node.op, target, args, kwargs, node.name, node.type)
                proxy.node.meta = {k: v for k, v in node.meta.items() if k != "nn_module_stack"} | proxy.node.meta
        return args[0]

    return forward


def called(module: GraphModule, tracer: Tracer) -> Callable[..., Any] | None:
    """`stepped` for the arguments that the module itself is called with; None where its code rearranges them."""
    if type(graph_of(module)._codegen) is not torch.fx.graph.CodeGen:
        return None
    signature, forward = inspect.signature(module.forward), stepped(module, tracer)

    def bound(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return forward(*given.arguments.values())

    return bound
