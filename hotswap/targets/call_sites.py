"""Where in a network's code a call is made: the chain of calls from the module's own forward down to it.

Each link is a function and the place in it, by line and column, so that two calls on one line differ. Plans keep
which of the function's calls by that name it is, which outlives comments and another formatting. Frames of torch and
of this package are left out: hooks, modes, checkpointing and decorators of torch come and go between two runs.
"""

import dis
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn


class Chain(NamedTuple):
    """The chain of one call."""

    key: str  # unique in this process
    at: tuple[
        str, ...
    ]  # as plans keep it, wherever the code lies: "function: name called, which of its calls/of how many"
    repeats: bool  # whether it passes through a loop, so that several calls may have it


def begun(forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a module's forward, where chains begin."""
    return forward(*args, **kwargs)


def chain_here(*, traced: bool = False) -> Chain:
    """The chain of the running call of `F.interpolate`.

    Args:
        traced: by torch.fx, where chains begin at a module's call and nothing calls `begun`.
    """
    links = list(_links(sys._getframe(1), _TRACING if traced else (_BEGUN,)))
    ours = [link for link in links if not _is_foreign(link[0])]
    called = [*(code.co_name for code, _ in ours[1:]), F.interpolate.__name__]
    at = tuple(_at(*link, name) for link, name in zip(ours, called, strict=True))
    return Chain(_key(ours), at, any(_repeats(*link) for link in links))


def chain_of(code: CodeType, line: int) -> Chain:
    """The chain of the call of `F.interpolate` that is the only statement on a line of a forward."""
    calls = [i for i in dis.get_instructions(code) if i.opname.startswith("CALL") and i.positions is not None]
    instruction = next(i.offset for i in reversed(calls) if i.positions and i.positions.lineno == line)
    at = _at(code, instruction, F.interpolate.__name__)
    return Chain(_key([(code, instruction)]), (at,), _repeats(code, instruction))


def key_here() -> str:
    """`Chain.key` of the running call of `F.interpolate`, at little cost."""
    return _key(_links(sys._getframe(1), (_BEGUN,)))


def key_traced() -> str:
    """`key_here` where Dynamo reads the code instead of running it, and takes this for a constant."""
    inside: list[tuple[CodeType, Any]] = []
    translator = _translator()
    while translator is not None and not _is(translator.f_code, _BEGUN):
        inside.append((translator.f_code, translator.current_instruction.positions))
        translator = translator.parent
    links = _links(sys._getframe(1), (_BEGUN,)) if translator is None else []
    outside = [link for link in links if not _is_foreign(link[0])]
    last_dispatch = max((n for n, (code, _) in enumerate(inside, 1) if code.co_name == _DISPATCH), default=0)
    inside = inside[last_dispatch:]
    if outside and inside and _resumes(inside[-1][0], outside[-1][0]):
        outside.pop()
    within = [_named(code, at.lineno, at.col_offset) for code, at in reversed(inside) if not _is_foreign(code)]
    return _ARROW.join([*filter(None, [_key(outside)]), *within])


def last_of(key: str) -> str:
    """The last link of a chain: the call itself."""
    return key.rpartition(_ARROW)[2]


def is_end_of(key: str, whole: str) -> bool:
    """Whether one key ends another: its chain begins in a function on the way of the other chain."""
    return whole == key or whole.endswith(f"{_ARROW}{key}")


def broken(key: str) -> bool:
    """Whether a key has a place in code that `torch.compile` made and whose source is not known."""
    return ":None" in key


def checkpointed() -> bool:
    """Whether the running call of `F.interpolate` is in a checkpointed part of its forward.

    A module inside that makes the call in its own forward is no such part.
    """
    for frame in _frames():
        if frame.f_code is _MODULE_CALL:
            return False
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
    return False


def rerun_apart() -> bool:
    """Whether activation checkpointing will run the running call of `F.interpolate` again without its forward."""
    for frame in _frames():
        if _is(frame.f_code, _REENTRANT):  # which runs all without gradients
            return any(frame.f_locals["ctx"].needs_input_grad)
    return torch.is_grad_enabled() and checkpointed()


def checkpointed_traced() -> bool:
    """`checkpointed` where Dynamo reads the code: whether it is in a graph of its own."""
    return _translator().output.current_tracer.parent is not None


def _frames() -> Iterator[FrameType]:
    """The frames of the running call of `F.interpolate`, up to its forward."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is(frame.f_code, _BEGUN):
        yield frame
        frame = frame.f_back


def _translator() -> Any:
    """The translator with which Dynamo reads the code around the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and "tx" not in frame.f_locals:
        frame = frame.f_back
    assert frame is not None  # noqa: S101 (it is called by Dynamo alone)
    return frame.f_locals["tx"]


# As torch.compiler.assume_constant_result does, which imports all of the compiler.
key_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
checkpointed_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]


_ARROW = " > "
_DISPATCH = "__torch_function__"
_REENTRANT = torch.utils.checkpoint.CheckpointFunction.forward.__code__
_BEGUN = begun.__code__
_MODULE_CALL = nn.Module._call_impl.__code__
_TRACING: tuple[CodeType, ...] = (_MODULE_CALL, torch.fx.Tracer.trace.__code__)
_FOREIGN = tuple(f"{package}{os.sep}" for package in (Path(torch.__file__).parent, Path(__file__).parents[1]))
_CALLING_BACK = frozenset({"map", "starmap", "reduce", "filter", "accumulate"})  # loops in C, which show no jump
_RESUMED = re.compile(r"torch_dynamo_resume_in_(.*)_at_\d+$")


def _links(frame: FrameType | None, beginnings: tuple[CodeType, ...]) -> Iterator[tuple[CodeType, int]]:
    """Code and instruction of each function on the way from a forward to a call, whatever modes that goes through."""
    links: list[tuple[CodeType, int]] = []
    while frame is not None and not any(_is(frame.f_code, code) for code in beginnings):
        if _is(frame.f_code, F.interpolate.__code__) or frame.f_code.co_name == _DISPATCH:
            links.clear()
        elif links and _resumes(links[-1][0], frame.f_code):
            pass
        else:
            links.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return reversed(links)


def _is(code: CodeType, original: CodeType) -> bool:
    """Whether this is that code, or its version by `torch.compile`."""
    return code is original or (code.co_name == original.co_name and code.co_filename == original.co_filename)


def _resumes(code: CodeType, caller: CodeType) -> bool:
    """Whether this is the rest, after a graph break, of the function that calls it."""
    return _RESUMED.match(code.co_name) is not None and _function(code) == _function(caller)


def _function(code: CodeType) -> str:
    return _RESUMED.sub(r"\1", code.co_qualname)


_places: dict[tuple[int, int], tuple[CodeType, str]] = {}  # by id, as code is hashed by all it holds


def _key(links: Iterable[tuple[CodeType, int]]) -> str:
    return _ARROW.join(filter(None, [_place(*link) for link in links]))


def _place(code: CodeType, instruction: int) -> str:
    """A link as text; empty for code of torch and of this package."""
    known = _places.get((id(code), instruction))
    if known is None:
        line, _, column, _ = list(code.co_positions())[instruction // 2]
        known = _places[id(code), instruction] = (code, "" if _is_foreign(code) else _named(code, line, column))
    return known[1]


def _named(code: CodeType, line: int | None, column: int | None) -> str:
    file = Path(code.co_filename).name
    if file.startswith("<"):  # generated code, whose names are numbered
        file = re.sub(r"\d+", "", file)
    return f"{file}:{_function(code)}:{line}:{column}"


def _is_foreign(code: CodeType) -> bool:
    return code.co_filename.startswith(_FOREIGN)


@cache
def _at(code: CodeType, instruction: int, name: str) -> str:
    """A link as plans keep it."""
    positions = [(line or 0, column or 0, to or 0, end or 0) for line, to, column, end in code.co_positions()]
    line, column, to, end = positions[instruction // 2]
    instructions = list(dis.get_instructions(code))
    places = sorted({positions[i.offset // 2][:2] for i in instructions if i.argval == name})
    inside = [place for place in places if (line, column) <= place <= (to, end)]
    if not inside:  # called by another name
        name = "call"
        calls = [i for i in instructions if i.opname.startswith("CALL") and "INTRINSIC" not in i.opname]
        places = sorted({positions[i.offset // 2][:2] for i in calls})
        inside = [(line, column)]
    if inside[0] not in places:  # a generator goes on: in a loop over it, or where it is unpacked
        name = "step"
        places = sorted({positions[i.offset // 2][:2] for i in instructions})
    return f"{code.co_qualname}: {name} {places.index(inside[0]) + 1}/{len(places)}"


@cache
def _repeats(code: CodeType, instruction: int) -> bool:
    """Whether an instruction may run several times in one call of its function."""
    if code.co_filename.startswith(_FOREIGN[1]):
        return False
    return not _CALLING_BACK.isdisjoint(code.co_names) or _comes_back(code, instruction)


def _comes_back(code: CodeType, instruction: int) -> bool:
    """Whether an instruction can be reached from itself. Jumping back is not enough: handlers of errors do, too."""
    listed: Any = dis.Bytecode(code)
    steps = {step.offset: step for step in listed}
    after = dict(itertools.pairwise(steps))
    start = max(offset for offset in steps if offset <= instruction)  # a call's is within its caches
    seen, waiting = set[int](), [start]
    while waiting:
        step = steps[waiting.pop()]
        onward = [entry.target for entry in listed.exception_entries if entry.start <= step.offset < entry.end]
        if step.opcode in _JUMPS:
            onward.append(step.argval)
        if step.opname not in _LEAVING and step.offset in after:
            onward.append(after[step.offset])
        if start in onward:
            return True
        waiting += [offset for offset in onward if offset not in seen]
        seen.update(onward)
    return False


_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_LEAVING = frozenset(  # nothing goes on behind these
    name for name in dis.opmap if name.startswith(("RETURN_", "RAISE_", "RERAISE", "JUMP")) and "_IF_" not in name
)
