"""The modules that are traced through, and checks whether they may be."""

import torch
import torch.fx
from torch import nn
from torch.fx import GraphModule

from hotswap.network.dry_run import Observation
from hotswap.network.graph_modules import by_mode, is_stale
from hotswap.network.names import joined
from hotswap.surgery import install
from hotswap.surgery.path_tracer import UnpackedError
from hotswap.surgery.registry import leaf_modules
from hotswap.surgery.tracing import Traced, UntraceableError, trace
from hotswap.surgery.whole import hooks_of


def open_and_trace(
    root_path: str,
    root: nn.Module,
    opened: set[str],
    inside: set[str] | None,
    observation: Observation | None,
    *,
    from_input: bool = False,
) -> Traced:
    """`trace`, with all modules opened that this takes, after a look at each whether it may be.

    Beside `opened` these are the modules whose outputs the traced code unpacks: `first, *others = self.encoder(x)`.

    Raises:
        HotswapError: where one may not be opened, or the code cannot be traced, with the reason.
    """
    _check_root(root_path, root)
    call = None if observation is None else observation.first(root_path)
    looked_at = set[str]()
    while True:
        for path in sorted(opened - looked_at):
            _check_openable(joined(root_path, path), root.get_submodule(path))
        looked_at = opened
        try:
            traced = trace(root, opened, inside, from_input=from_input, call=call)
        except UnpackedError as error:
            opened = opened | {error.module}
        else:
            _check_one_graph(root_path, traced)
            return traced


def _check_code(path: str, module: nn.Module) -> None:
    if isinstance(module, GraphModule) and is_stale(module):
        raise UntraceableError(
            f"module {path or 'the network'!r} has a graph that was edited since its code was generated, so it runs "
            "other code; call its recompile() first"
        )
    if install.CALLS in module.__dict__:
        raise UntraceableError(f"module {path or 'the network'!r} has enlargements whose guides are caught by hooks")
    if isinstance(module, torch.jit.ScriptModule):
        raise UntraceableError(
            f"module {path or 'the network'!r} is a ScriptModule, whose code cannot be edited; "
            "convert the eager network"
        )


def _check_openable(path: str, module: nn.Module) -> None:
    _check_code(path, module)
    if isinstance(module, leaf_modules()):
        raise UntraceableError(
            f"module {path!r} is a {type(module).__name__}, which is registered as not to be traced"
        )
    if [*hooks_of(module)]:
        raise UntraceableError(
            f"module {path!r} has hooks, which the rewritten forward would not call; "
            "remove them, or choose a guide and targets in one part of the network"
        )


def _check_root(path: str, module: nn.Module) -> None:
    _check_code(path, module)
    if "forward" in module.__dict__:
        raise UntraceableError(
            f"module {path or 'the network'!r} has had its forward replaced on the instance, which a rewritten class "
            "would not change; undo that first"
        )


def _check_one_graph(path: str, traced: Traced) -> None:
    """A GraphModule has no code of its own to choose between the modes of the modules that it opened."""
    if isinstance(traced.root, GraphModule) and traced.opened:
        sources = [graph.python_code("self").src for graph in traced.graphs]
        if by_mode(traced.root) or sources[0] != sources[1]:
            raise UntraceableError(
                f"module {path or 'the network'!r} is a {type(traced.root).__name__}, and {traced.opened[0]!r} in it "
                "does different things in training and in evaluation, which one graph cannot"
            )
