"""What follows each enlargement of a network, from there to its outputs."""

import enum
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from hotswap.network.nested import parts
from hotswap.targets.entries import named
from hotswap.targets.layout import COLUMNS, ROWS, Layout, counting, extents, is_map, kinds, of_map, size_of
from hotswap.targets.position_rules import Mixes, follow, is_constant, name_of, sums_products, tensors
from pac_ops.geometry import Pair

Key = tuple[str, int | None]  # of an enlargement: see `Sites.by_call`
_FINER = 1.25  # times as many rows or columns: less is the rounding of odd sizes


class Kind(enum.IntEnum):
    """What follows an enlargement, from the least to the most."""

    SCORES = 0  # pointwise operations and other enlargements
    MIXED = 1  # a finer map, put to it place by place
    UNKNOWN = 2
    FEATURES = 3  # an operation over several positions


@dataclass(frozen=True)
class Place:
    """Where an enlargement is in its network."""

    kind: Kind
    by: str | None  # the module or operation that makes it so; None for scores
    start: Pair  # the size of the coarse map that the first of several enlargements in a row has
    end: Pair  # the size after the last of them
    steps: int  # how many these are

    @property
    def factor(self) -> float:
        """How often the map is enlarged: between centres of corners if that is a whole number, else between sides."""
        factors = []
        for coarse, fine in zip(self.start, self.end, strict=True):
            corners = (fine - 1) / (coarse - 1) if coarse > 1 else 0.0
            factors.append(corners if corners and corners.is_integer() and fine % coarse else fine / coarse)
        return min(factors)


class _Mark(NamedTuple):
    """What is known, at some tensor, of an enlargement before it."""

    kind: Kind
    by: str | None
    start: Pair  # the size of the coarse map that the first enlargement in a row had
    end: Pair  # the size after the last one
    steps: int


@dataclass(frozen=True)
class _Trace:
    """A tensor that depends on the image."""

    layout: Layout | None = None  # of positions, while some enlargement's can be told apart
    detail: Pair | None = None  # the size of the finest map that it is made of, with a layout
    marks: Mapping[int, _Mark] = field(default_factory=dict)  # by number of the enlargement's call

    def marked(self, kind: Kind, by: str) -> "_Trace":
        """The trace behind an operation after which positions cannot be told apart."""
        return _Trace(
            marks={
                n: mark if mark.kind >= kind else mark._replace(kind=kind, by=by) for n, mark in self.marks.items()
            }
        )


_IMAGE = _Trace()


class Flow(TorchDispatchMode):
    """Follows tensors from the image through the enlargements to the outputs of a running network."""

    supports_higher_order_operators = True  # such as torch.cond, of which is only known what goes in and out

    def __init__(self, here: Callable[[str], str]) -> None:
        """Follow a network.

        Args:
            here: puts the name of an operation and the running module into words.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._here = here
        self._hidden = 0  # functions in which nothing is followed
        self.begin(())

    def begin(self, inputs: Any) -> None:
        """Forget everything; the network begins with these inputs."""
        self._traces: dict[int, tuple[weakref.ref[Tensor], _Trace]] = {}
        self._calls: list[Key] = []
        for x in leaves(inputs):
            self._set(x, _IMAGE)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Follow nothing: what happens here is an enlargement, told by `enlarged`."""
        self._hidden += 1
        try:
            yield
        finally:
            self._hidden -= 1

    def enlarged(self, key: Key, given: Any, result: Any) -> None:
        """Note an enlargement, or what may turn out to be none."""
        if not isinstance(result, Tensor):
            return
        trace, name = self._of(given) or _IMAGE, named(*key)
        if not (isinstance(given, Tensor) and given.dim() == result.dim() == 4):
            self._set(result, trace.marked(Kind.FEATURES, name))
            return
        coarse, fine = _size(given), _size(result)
        if coarse == fine:
            self._set(result, trace)
        elif fine[0] < coarse[0] or fine[1] < coarse[1]:
            self._set(result, trace.marked(Kind.FEATURES, name))
        elif trace.layout is not None and not is_map(trace.layout):
            self._set(result, trace.marked(Kind.UNKNOWN, name))
        else:
            self._set(result, self._grown(trace, coarse, result, key))

    def _grown(self, trace: _Trace, coarse: Pair, result: Tensor, key: Key | None) -> _Trace:
        fine = _size(result)
        marks = {
            number: mark._replace(end=fine, steps=mark.steps + 1) if mark.kind is Kind.SCORES else mark
            for number, mark in trace.marks.items()
        }
        start = coarse if trace.layout is None or trace.detail is None else trace.detail
        if key is not None:
            steps = max((mark.steps for mark in marks.values() if mark.kind is Kind.SCORES), default=1)
            marks[len(self._calls)] = _Mark(Kind.SCORES, None, start, fine, steps)
            self._calls.append(key)
        return _Trace(of_map(result.shape), start, marks)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and follow its inputs to its outputs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._hidden:
            self._follow(func, args, kwargs, tensors([*args, *kwargs.values()]), tensors([result]))
        return result

    def _follow(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], outputs: list[Tensor]) -> None:
        traces = [trace for x in given if (trace := self._of(x)) is not None]
        behind = self._behind(func, args, kwargs, given, traces, outputs)
        for x, trace in zip(outputs, behind, strict=True):
            if trace is None:
                self._traces.pop(id(x), None)
                continue
            self._set(x, trace)
            if isinstance(func, OpOverload) and func._schema.is_mutable and x._base is not None:
                self._write_through(x, x._base, trace)

    def _behind(
        self, func: Any, args: Any, kwargs: Any, given: list[Tensor], traces: list[_Trace], outputs: list[Tensor]
    ) -> Sequence[_Trace | None]:
        """The trace of each output of an operator; None where it does not depend on the image."""
        if not traces or (isinstance(func, OpOverload) and is_constant(func)):
            return [None] * len(outputs)
        if all(trace.layout is None for trace in traces):
            return [_Trace(marks=_worst(trace.marks for trace in traces))] * len(outputs)
        if not isinstance(func, OpOverload):
            return [self._lost(func, traces, Kind.UNKNOWN)] * len(outputs)
        try:
            if name_of(func).startswith("upsample_") and is_map(traces[0].layout or ()):
                return [self._grown(traces[0], _size(given[0]), outputs[0], None)]
            layouts = follow(func, args, kwargs, outputs, self._layout_of)
            return [None if layout is None else self._joined(func, given, layout) for layout in layouts]
        except Mixes:
            return [self._lost(func, traces, Kind.FEATURES)] * len(outputs)
        except Exception:  # noqa: BLE001 (an operator in a form that nobody thought of must not stop a plain run)
            return [self._lost(func, traces, Kind.UNKNOWN)] * len(outputs)

    def _lost(self, func: Any, traces: Iterable[_Trace], kind: Kind) -> _Trace:
        """The trace of an output whose positions are not those of the inputs."""
        by = self._here(name_of(func) if isinstance(func, OpOverload) else str(func))
        return _Trace(marks=_worst(trace.marked(kind, by).marks for trace in traces))

    def _joined(self, func: Any, given: list[Tensor], layout: Layout) -> _Trace:
        """The trace of tensors put together place by place."""
        size = extents(layout)
        details: list[tuple[_Trace, Pair]] = []
        for x in given:
            if (trace := self._of(x)) is None:
                continue
            if trace.layout is not None and trace.detail is not None:
                details.append((trace, trace.detail))
            else:
                details.append((trace, (1, 1) if sums_products(func) else _extent(x, layout, size)))
        marks: list[dict[int, _Mark]] = []
        for trace, _ in details:
            others = [other for other in details if other[0] is not trace]
            by = self._here(name_of(func)) if others else ""
            marks.append({number: _mixed(number, mark, others, by) for number, mark in trace.marks.items()})
        detail = (max(d[0] for _, d in details), max(d[1] for _, d in details))
        return _Trace(layout, detail, _worst(marks))

    def _write_through(self, view: Tensor, base: Tensor, trace: _Trace) -> None:
        """Note what was written into a tensor through a view of it."""
        before = self._of(base)
        known = before or _IMAGE
        if trace.layout is not None and view.dim() == base.dim():
            pairs = list(zip(trace.layout, base.shape, strict=True))
            layout = tuple(part if size_of(part) == size else counting(int(size)) for part, size in pairs)
            if kinds(layout) == kinds(trace.layout) and (before is None or before.layout == layout):
                self._set(base, _Trace(layout, trace.detail, _worst([known.marks, trace.marks])))
                return
        lost = trace.marked(Kind.UNKNOWN, self._here("copy"))
        self._set(base, _Trace(marks=_worst([known.marks, lost.marks])))

    def _layout_of(self, x: Tensor) -> Layout | None:
        trace = self._of(x)
        return None if trace is None else trace.layout

    def _of(self, x: Any) -> _Trace | None:
        reference, trace = self._traces.get(id(x), (None, None))
        return trace if reference is not None and reference() is x else None

    def _set(self, x: Tensor, trace: _Trace) -> None:
        self._traces[id(x)] = (weakref.ref(x), trace)

    def places(self, output: Any) -> dict[Key, Place]:
        """The place of each enlargement that the outputs of the network depend on.

        A single number for all images is a loss, and counts only where there is nothing else.
        """
        outputs = list(leaves(output))
        traces = (self._of(x) for x in [x for x in outputs if x.dim() > 0] or outputs)
        marks = _worst(trace.marks for trace in traces if trace is not None)
        result: dict[Key, Place] = {}
        for number, mark in marks.items():
            place = Place(*mark)
            before = result.get(self._calls[number])
            if before is None or (place.kind, -place.factor) > (before.kind, -before.factor):
                result[self._calls[number]] = place
        return result


def _worst(marks: Iterable[Mapping[int, _Mark]]) -> dict[int, _Mark]:
    """The marks of tensors that become one, each with what is least like scores."""
    result: dict[int, _Mark] = {}
    for each in marks:
        for number, mark in each.items():
            before = result.get(number)
            if before is None or (mark.kind, mark.end) > (before.kind, before.end):
                result[number] = mark
    return result


def _mixed(number: int, mark: _Mark, others: Iterable[tuple[_Trace, Pair]], by: str) -> _Mark:
    """A mark behind an operation with other tensors, each with its detail."""
    if mark.kind is not Kind.SCORES:
        return mark
    finer = any(
        number not in trace.marks and any(d > _FINER * s for d, s in zip(detail, mark.start, strict=True))
        for trace, detail in others
    )
    return mark._replace(kind=Kind.MIXED, by=by) if finer else mark


def _extent(x: Tensor, layout: Layout, size: Pair) -> Pair:
    """The number of rows and columns in which a tensor without layout differs, put to one with a layout."""
    full: set[str] = set()
    for place, dimension in enumerate(reversed(layout), start=1):
        if place <= x.dim() and x.shape[-place] != 1:
            full |= {factor.kind for factor in dimension if factor.kind}
    return (size[0] if ROWS in full else 1, size[1] if COLUMNS in full else 1)


def _size(x: Tensor) -> Pair:
    return int(x.shape[2]), int(x.shape[3])


def leaves(x: Any) -> Iterator[Tensor]:
    """The tensors in a network's inputs or outputs."""
    if isinstance(x, Tensor):
        yield x
    else:
        for _, part in parts(x) or ():
            yield from leaves(part)
