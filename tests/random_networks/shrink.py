"""Makes a failing network smaller while the same law fails, and writes it down as a test."""

import ast
import time
from collections.abc import Iterator
from dataclasses import replace

from .laws import FaultError, check
from .plan import Choice
from .program import Program
from .run import Found


def shrink(found: Found, *, seconds: float = 60) -> Found:
    """Remove targets, options and statements as long as the law that failed still fails, and time is left."""
    end = time.monotonic() + seconds
    smaller: Found | None = found
    while smaller is not None:
        found = smaller
        smaller = next((one for one in _candidates(found, end) if one is not None), None)
    return found


def _candidates(found: Found, end: float) -> Iterator[Found | None]:
    for choice in _simpler(found.choice):
        yield _still(found, found.program, choice, end)
    for program in _shorter(found.program):
        yield _still(found, program, found.choice, end)


def _still(found: Found, program: Program, choice: Choice, end: float) -> Found | None:
    """The same fault, if it is there."""
    if time.monotonic() > end:
        return None
    try:
        check(program, choice, found.seed, export=found.export)
    except FaultError as fault:
        alike = fault.law == found.fault.law and fault.what.split()[:3] == found.fault.what.split()[:3]
        return replace(found, program=program, choice=choice, fault=fault) if alike else None
    except Exception:  # noqa: BLE001 (what is left is no program)
        return None
    return None


def _simpler(choice: Choice) -> Iterator[Choice]:
    plain = Choice(choice.targets)
    for name in ("learn_scale", "kernel", "resize", "after_activation", "footprint", "method"):
        if getattr(choice, name) != getattr(plain, name):
            yield replace(choice, **{name: getattr(plain, name)})
    for i, target in enumerate(choice.targets):
        rest = choice.targets[:i], choice.targets[i + 1 :]
        if len(choice.targets) > 1:
            yield replace(choice, targets=(*rest[0], *rest[1]))
        for guide in target.guides if len(target.guides) > 1 else ():
            yield replace(choice, targets=(*rest[0], replace(target, guides=(guide,)), *rest[1]))
        if target.scale not in (0.0, 1.0):
            yield replace(choice, targets=(*rest[0], replace(target, scale=1.0), *rest[1]))


def _shorter(program: Program) -> Iterator[Program]:
    if program.dtype != "float64":
        yield replace(program, dtype="float64")
    if program.batch != 1:
        yield replace(program, batch=1)
    lines = program.main.splitlines()
    spans = sorted(_statements(program.main), key=lambda span: span[0] - span[1])  # the longest first
    for first, last, alone in spans:
        indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
        kept = [*lines[:first], *([f"{indent}pass"] if alone else []), *lines[last + 1 :]]
        yield program.with_main("\n".join(kept) + "\n")


def _statements(text: str) -> Iterator[tuple[int, int, bool]]:
    """First and last line of each statement, from 0, and whether its block has no other."""
    for node in ast.walk(ast.parse(text)):
        for block in (getattr(node, name, None) for name in ("body", "orelse")):
            if not isinstance(block, list):
                continue
            for statement in block:
                if isinstance(statement, ast.Pass) or statement.end_lineno is None:
                    continue
                yield statement.lineno - 1, statement.end_lineno - 1, len(block) == 1


def as_test(found: Found) -> str:
    """A test of the fault, to be pasted into a file of this folder."""
    program = found.program
    options = ", ".join(f"{name}={getattr(program, name)!r}" for name in ("dtype", "size", "other", "batch", "after"))
    main = program.main.replace('"""', "'''")
    return (
        f"# {found.fault}\n"
        f"def test_seed_{found.seed}():\n"
        f'    main = """\\\n{main}"""\n'
        f"    program = Program(main, PARTS, {options})\n"
        f"    choice = {found.choice!r}\n"
        f"    check(program, choice, {found.seed}, export={found.export})\n"
    )
