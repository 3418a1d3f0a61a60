"""Where in a network's code a call is made: the chain of calls from the module's own forward down to it.

Each link is a function and the place in it, by line and column, so that two calls on one line differ. Plans keep which
of the function's calls by that name it is, which outlives comments and another formatting. Frames of torch and of this
package are left out: hooks, modes, checkpointing and decorators of torch come and go between two runs.
"""

import dis
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

import hotswap


class Chain(NamedTuple):
    """Of one call."""

    key: str  # what tells it from others in this process
    at: tuple[str, ...]  # the same wherever the code lies: "function: name called, which of its calls/of how many"
    repeats: bool  # whether it passes through a loop, so that several calls may have it


def begun(forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a module's forward, where chains begin."""
    return forward(*args, **kwargs)


def chain_here(*, traced: bool = False) -> Chain:
    """Of the call of `F.interpolate` that is going on.

    Args:
        traced: by torch.fx, where chains begin at a module's call and nothing calls `begun`.
    """
    links = list(_links(sys._getframe(1), _TRACING if traced else (begun.__code__,)))
    own = [link for link in links if not _is_foreign(link[0])]
    called = [*(code.co_name for code, _ in own[1:]), F.interpolate.__name__]
    at = tuple(_at(*link, name) for link, name in zip(own, called, strict=True))
    return Chain(_key(own), at, any(_repeats(*link) for link in links))


def key_here() -> str:
    """`Chain.key` of the call of `F.interpolate` that is going on, at little cost."""
    return _key(_links(sys._getframe(1), (begun.__code__,)))


@torch.compiler.assume_constant_result  # called while Dynamo traces a call, which it then has a constant for
def key_traced() -> str:
    """`key_here` where Dynamo reads the code instead of running it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and "tx" not in frame.f_locals:
        frame = frame.f_back
    assert frame is not None  # noqa: S101 (it is called by Dynamo alone)
    places, translator, last = list[str](), frame.f_locals["tx"], False
    while translator is not None and not last:
        code, positions = translator.f_code, translator.current_instruction.positions
        last = code is begun.__code__
        if code.co_name == _DISPATCH:
            places.clear()
        elif not last and not _is_foreign(code):
            places.append(_named(code, positions.lineno, positions.col_offset))
        translator = translator.parent
    outside = "" if last else _key(_links(frame, (begun.__code__,)))
    return _ARROW.join([*filter(None, [outside]), *reversed(places)])


def rerun_apart() -> bool:
    """Whether activation checkpointing will run the call of `F.interpolate` going on again without its forward."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not begun.__code__:
        if frame.f_code is _REENTRANT and any(frame.f_locals["ctx"].needs_input_grad):
            return True
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__ and torch.is_grad_enabled():
            return True
        frame = frame.f_back
    return False


_ARROW = " > "
_DISPATCH = "__torch_function__"
_REENTRANT = torch.utils.checkpoint.CheckpointFunction.forward.__code__
_TRACING: tuple[CodeType, ...] = (nn.Module._call_impl.__code__, torch.fx.Tracer.trace.__code__)
_FOREIGN = tuple(f"{Path(package.__file__).parent}{os.sep}" for package in (torch, hotswap))
_CALLING_BACK = frozenset({"map", "starmap", "reduce", "filter", "accumulate"})  # loops in C, which show no jump
_RESUMED = re.compile(r"torch_dynamo_resume_in_(.*)_at_\d+$")


def _links(frame: FrameType | None, beginnings: tuple[CodeType, ...]) -> Iterator[tuple[CodeType, int]]:
    """Code and instruction of each function on the way from a forward to a call, whatever modes that goes through."""
    links: list[tuple[CodeType, int]] = []
    while frame is not None and not any(frame.f_code is code for code in beginnings):
        if frame.f_code is F.interpolate.__code__ or frame.f_code.co_name == _DISPATCH:
            links.clear()
        else:
            links.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return reversed(links)


_places: dict[tuple[int, int], tuple[CodeType, str]] = {}  # by id, as code is hashed by all it holds


def _key(links: Iterable[tuple[CodeType, int]]) -> str:
    return _ARROW.join(filter(None, [_place(*link) for link in links]))


def _place(code: CodeType, instruction: int) -> str:
    """Empty for code of torch and of this package."""
    known = _places.get((id(code), instruction))
    if known is None:
        line, _, column, _ = _positions(code)[instruction // 2]
        known = _places[id(code), instruction] = (code, "" if _is_foreign(code) else _named(code, line, column))
    return known[1]


def _named(code: CodeType, line: int | None, column: int | None) -> str:
    file = Path(code.co_filename).name
    if file.startswith("<"):  # generated code, whose names are numbered
        file = re.sub(r"\d+", "", file)
    function = _RESUMED.sub(r"\1", code.co_qualname)
    return f"{file}:{function}:{line}:{column}"


def _is_foreign(code: CodeType) -> bool:
    return code.co_filename.startswith(_FOREIGN)


def _positions(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())


@cache
def _at(code: CodeType, instruction: int, name: str) -> str:
    """A link as plans keep it."""
    positions = [(line or 0, column or 0, to or 0, end or 0) for line, to, column, end in _positions(code)]
    line, column, to, end = positions[instruction // 2]
    instructions = list(dis.get_instructions(code))
    found = sorted({positions[i.offset // 2][:2] for i in instructions if i.argval == name})
    inside = [place for place in found if (line, column) <= place <= (to, end)]
    if not inside:  # called by another name
        name = "call"
        found = sorted({positions[i.offset // 2][:2] for i in instructions if i.opname.startswith("CALL")})
        inside = [(line, column)]
    return f"{code.co_qualname}: {name} {found.index(inside[0]) + 1}/{len(found)}"


@cache
def _repeats(code: CodeType, instruction: int) -> bool:
    """Whether an instruction may run several times in one call of its function."""
    if code.co_filename.startswith(_FOREIGN[1]):
        return False
    return not _CALLING_BACK.isdisjoint(code.co_names) or any(
        "JUMP_BACKWARD" in jump.opname and jump.argval <= instruction <= jump.offset
        for jump in dis.get_instructions(code)
    )
