"""Methods of a network that look at its inputs and raise where these do not suit it.

They depend on sizes, which no graph follows, and need not be followed: they are called as they are, before the graph
(segmentation_models_pytorch's `check_input_shape`, say).
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy

from hotswap.surgery.proxies import UNKNOWN, Standing
from hotswap.targets.forward_ops import require_given, require_value


def check_inputs(check: Callable[..., None], *inputs: Any) -> None:
    """Call a network's own check; not while it is compiled or exported, where it would fix sizes that may vary."""
    if not torch.compiler.is_compiling():
        check(*inputs)


_BEFORE = (require_given, require_value, check_inputs)


def own_methods(kind: type[nn.Module]) -> dict[str, Callable[..., Any]]:
    """The methods that a module's class and its bases define, but for `forward`: the nearest of each name."""
    methods: dict[str, Callable[..., Any]] = {}
    for cls in kind.__mro__:
        if cls not in nn.Module.__mro__:
            for name, value in vars(cls).items():
                if inspect.isfunction(value) and name != "forward" and not name.startswith("__"):
                    methods.setdefault(name, value)
    return methods


@contextmanager
def called_as_they_are(root: nn.Module, standing: Standing) -> Iterator[list[str]]:
    """While root's forward is traced: have its checks of its own inputs, before all else, called by the graph.

    Yields:
        The names of its own methods, each of which is an attribute of the instance meanwhile.
    """
    names = [name for name in own_methods(type(root)) if name not in root.__dict__]
    for name in names:
        root.__dict__[name] = _stand_in(name, getattr(root, name), root, standing)
    try:
        yield names
    finally:
        for name in names:
            del root.__dict__[name]


def _stand_in(name: str, method: Callable[..., Any], root: nn.Module, standing: Standing) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        if kwargs or not args or not all(isinstance(x, Proxy) and x.node.op == "placeholder" for x in args):
            return method(*args, **kwargs)
        tracer = args[0].tracer
        before = list(tracer.graph.nodes)
        if not all(node.op in ("placeholder", "get_attr") or node.target in _BEFORE for node in before):
            return method(*args)
        try:
            return method(*args)
        except Exception:  # whatever code raises that is handed proxies; control flow and math do
            if not _only_looks(method, root, [standing.value(x) for x in args], standing):
                raise
        for node in reversed([*tracer.graph.nodes][len(before) :]):
            tracer.graph.erase_node(node)
        tracer.create_proxy("call_function", check_inputs, (tracer.create_proxy("get_attr", name, (), {}), *args), {})
        return None

    return called


def _only_looks(method: Callable[..., Any], root: nn.Module, values: list[Any], standing: Standing) -> bool:
    """Whether a method, run on the values of one call, returns nothing and changes neither these nor the module."""
    if any(value is UNKNOWN for value in values):
        return False

    def state() -> list[int]:
        held = (vars(root), root._buffers, root._parameters, root._modules)
        tensors = [x for x in (*values, *root.buffers(), *root.parameters()) if isinstance(x, Tensor)]
        return [*(id(x) for each in held for x in each.values()), *(x._version for x in tensors)]

    before = state()
    try:
        return standing.run(method, *values) is None and state() == before
    except Exception:  # noqa: BLE001 (whatever code raises on fake tensors: then it is traced, which says what is wrong)
        return False
