"""Methods of a network that only look at its inputs and raise where these do not suit it.

They depend on sizes, which no graph follows, and need not be followed: they are called as they are, before the graph
(segmentation_models_pytorch's `check_input_shape`, say).
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx.proxy import Proxy

from hotswap.targets.forward_ops import require_given, require_value


def check_inputs(check: Callable[..., None], *inputs: Any) -> None:
    """Call a network's own check; not while it is compiled or exported, where it would fix sizes that may vary."""
    if not torch.compiler.is_compiling():
        check(*inputs)


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
def called_as_they_are(root: nn.Module) -> Iterator[None]:
    """While root's forward is traced: have its checks of its own inputs, before all else, called by the graph."""
    checks = [
        name for name, method in own_methods(type(root)).items() if name not in root.__dict__ and _only_looks(method)
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


# What a check consists of. No statement that is a call by itself: it would be made for what it does.
_STATEMENTS = (
    ast.FunctionDef,
    ast.If,
    ast.For,
    ast.Assign,
    ast.AnnAssign,
    ast.Raise,
    ast.Assert,
    ast.Return,
    ast.Pass,
)


@cache  # a network is traced some times, and those of transformers have a hundred methods
def _only_looks(method: Callable[..., Any]) -> bool:
    """Whether, by its text, a method raises or gives nothing back, and changes nothing."""
    try:
        text = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):  # no text, or one that does not stand by itself
        return False
    parts = list(ast.walk(text))
    raises = any(isinstance(part, ast.Raise | ast.Assert) for part in parts)
    return raises and not any(_does_more(part) for part in parts)


def _does_more(part: ast.AST) -> bool:
    if isinstance(part, ast.Return):
        return part.value is not None and not _is_constant(part.value, type(None))
    if isinstance(part, ast.Expr):
        return not _is_constant(part.value, str)  # a docstring
    if isinstance(part, ast.stmt):
        return not isinstance(part, _STATEMENTS)
    if isinstance(part, ast.Attribute | ast.Subscript) and not isinstance(part.ctx, ast.Load):
        return True
    name = part.attr if isinstance(part, ast.Attribute) else ""
    return name.endswith("_") and not name.endswith("__")  # torch's names of what works in place


def _is_constant(value: ast.expr, kind: type) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, kind)
