"""The code of a graph as a function that can be pickled."""

import hashlib
import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from torch.fx import Graph


class Code:
    """A function of (self, ...), pickled as its source."""

    def __init__(self, source: str, names: Mapping[str, Any]) -> None:
        self.source, self.names = source, dict(names)
        namespace = dict(names)
        name = f"<hotswap {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
        exec(compile(source, name, "exec"), namespace)  # noqa: S102 (what torch.fx made of a graph)
        self.run: Callable[..., Any] = namespace["forward"]

    @classmethod
    def of(cls, graph: Graph) -> "Code":
        """The code of a graph."""
        code = graph.python_code("self")
        return cls(code.src, code.globals)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Code) and (self.source, self.names) == (other.source, other.names)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, _memo: Any) -> "Code":
        return self  # which never changes

    def __reduce__(self) -> tuple[Any, ...]:
        names = {k: _Module(x.__name__) if isinstance(x, ModuleType) else x for k, x in self.names.items()}
        return _code, (self.source, names)


@dataclass(frozen=True)
class _Module:
    name: str


def _code(source: str, names: Mapping[str, Any]) -> Code:
    return Code(source, {k: import_module(x.name) if isinstance(x, _Module) else x for k, x in names.items()})
