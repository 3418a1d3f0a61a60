"""Methods of a network that only look at its inputs and raise where these do not suit it.

They depend on sizes, which no graph follows, and need not be followed: they are called as they are, before the graph
(segmentation_models_pytorch's `check_input_shape`, say).
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx.proxy import Proxy

from hotswap.guide import require_given, require_value


def check_inputs(check: Callable[..., None], *inputs: Any) -> None:
    """Call a network's own check; not while it is compiled or exported, where it would fix sizes that may vary."""
    if not torch.compiler.is_compiling():
        check(*inputs)


@contextmanager
def called_as_they_are(root: nn.Module) -> Iterator[None]:
    """While root's forward is traced: have its checks of its own inputs, before all else, called by the graph."""
    methods = {name: value for cls in type(root).__mro__[::-1] for name, value in vars(cls).items()}
    checks = [
        name
        for name, value in methods.items()
        if inspect.isfunction(value) and name not in vars(nn.Module) and not name.startswith("__")
        if name not in root.__dict__ and _only_looks(value)
    ]
    for name in checks:
        root.__dict__[name] = _stand_in(name, getattr(root, name))
    try:
        yield
    finally:
        for name in checks:
            del root.__dict__[name]


def _stand_in(name: str, check: Callable[..., None]) -> Callable[..., None]:
    def called(*args: Any, **kwargs: Any) -> None:
        if kwargs or not args or not all(isinstance(x, Proxy) and x.node.op == "placeholder" for x in args):
            return check(*args, **kwargs)
        tracer = args[0].tracer
        if not all(node.op in ("placeholder", "get_attr") or node.target in _BEFORE for node in tracer.graph.nodes):
            return check(*args)
        tracer.create_proxy("call_function", check_inputs, (tracer.create_proxy("get_attr", name, (), {}), *args), {})
        return None

    return called


_BEFORE = (require_given, require_value, check_inputs)


def _only_looks(method: Callable[..., Any]) -> bool:
    """Whether, by its text, a method gives nothing back and stores nothing."""
    try:
        text = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):  # no text, or one that does not stand by itself
        return False
    for node in ast.walk(text):
        if isinstance(node, ast.Return) and not (node.value is None or _is_none(node.value)):
            return False
        if isinstance(node, ast.Yield | ast.YieldFrom | ast.Await | ast.Global | ast.Nonlocal):
            return False
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            return False
    return True


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None
