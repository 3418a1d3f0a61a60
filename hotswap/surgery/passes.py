"""Brings guides from where they are caught to the layers they steer, by module hooks.

What is caught belongs to one pass of one thread:

- It lies in a frame that is opened when the module around guides and targets is called and closed when that returns
  or raises. So nothing outlives the pass, an exception leaves nothing behind, and a network called inside itself has
  a frame of its own.
- Where another method enters (timm's `forward_features`, say) no frame is open. Then a frame starts with the guide
  and ends when its last target has read it, or that method is no longer running.
- Activation checkpointing runs targets once more in the backward pass, when the frame is long closed. A target's node
  in the autograd graph therefore keeps its guide, and lets go of it when its gradient is computed.
"""

import functools
import os
import sys
import threading
import uuid
import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.errors import HotswapError
from hotswap.surgery.handed import REENTRANT
from hotswap.surgery.slots import Slot
from hotswap.targets.forward_ops import guide_copy

_KEPT = "hotswap.guides"  # in the metadata of autograd nodes
_TORCH = f"{Path(str(torch.__file__)).parent}{os.sep}"
_COMPILED = (0, 0)  # the scope of all that is compiled


@dataclass(eq=False)
class _Caught:
    guide: Tensor
    left: dict[str, int]  # target -> calls of it that have yet to read it
    read: bool = False
    kept: Tensor | None = None  # the same values for autograd nodes to hold: without the graph behind them


@dataclass(eq=False)
class _Frame:
    closes: bool  # with the module that opened it; the others end with the last reading
    caught: dict[Slot, _Caught] = field(default_factory=dict)
    due: dict[Slot, int] = field(default_factory=dict)  # calls of the activation to let pass before the one to catch
    passed: dict[Slot, int] = field(default_factory=dict)  # calls of the activation since the guide's
    entered: FrameType | None = None  # the call of a method that it started in, where none closes it


class Passes:
    """State shared by the hooks of one conversion: the guides of the running passes.

    A copy of it, and so of the network, starts without any.
    """

    def __init__(
        self,
        readers: Mapping[Slot, Mapping[str, int]],
        activations: Mapping[tuple[Slot, str], Collection[int]],
        layers: Collection[str] = (),
        conversion: str | None = None,
    ) -> None:
        self.readers = {slot: dict(targets) for slot, targets in readers.items()}  # -> target -> calls a catch
        self.activations = dict(activations)  # see `activations`
        self.layers = list(layers)  # targets that hooks give their guides
        self.conversion = conversion or uuid.uuid4().hex  # the same in copies
        self.hooked: list[tuple[str, weakref.ref[nn.Module]]] = []  # modules with its hooks, by path
        self._frames: dict[tuple[int, int], list[_Frame]] = {}
        self._kept: dict[Slot, list[weakref.ref[Tensor]]] = {slot: [] for slot in readers}
        self._running: dict[tuple[int, int], list[str]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Passes, (self.readers, self.activations, self.layers, self.conversion)

    def open(self) -> None:
        """Begin a pass; one that was left unfinished ends."""
        stack = self._frames.setdefault(_scope(), [])
        if stack and not stack[-1].closes:
            stack.pop()
        stack.append(_Frame(closes=True))

    def close(self) -> None:
        """End the pass."""
        stack = self._frames.get(_scope(), [])
        if stack:
            stack.pop()
        self._tidy(stack)

    def catch(self, slot: Slot, output: Any) -> None:
        """Keep a copy of a guide for its targets; the network may overwrite the original.

        Raises:
            HotswapError: where no target has read the one before: hooks see the order of calls, not what is
                computed from what.
        """
        frame = self._frame()
        if frame.closes and slot in frame.caught and not frame.caught[slot].read:
            raise HotswapError(
                f"guide {slot.source!r} is called twice before a target reads it, so it is not clear which call "
                'should steer it; choose another guide, or method="fx"'
            )
        frame.caught[slot] = _Caught(guide_copy(slot.source, output), dict(self.readers[slot]))

    def enter(self, root: nn.Module) -> None:
        """Note a call of a guide; where `root` itself is not running, find the method that entered past it."""
        if torch.compiler.is_compiling() or _in_backward():
            return
        stack = self._frames.setdefault(_scope(), [])
        if not stack or not stack[-1].closes:
            entered = _entered(root)
            if stack and entered is not stack[-1].entered:
                stack.pop()
            if not stack:
                stack.append(_Frame(closes=False, entered=entered))

    def expect(self, slot: Slot, calls: int) -> None:
        """Catch the activation's output after it was called `calls` times."""
        frame = self._frame()
        frame.due[slot], frame.passed[slot] = calls, 0

    def pass_activation(self, slot: Slot, output: Any) -> None:
        """Note a call of the activation of a slot, and catch its output if it is the expected one."""
        frame = self._frame()
        frame.passed[slot] = frame.passed.get(slot, 0) + 1
        due = frame.due
        if slot not in due:
            return
        due[slot] -= 1
        if due[slot] < 0:
            del due[slot]
            self.catch(slot, output)

    def read(self, slot: Slot, target: str, like: Tensor) -> Tensor:
        """The guide of a target that is about to run on `like`.

        Raises:
            HotswapError: where this pass has none.
        """
        stack = self._frames.get(_scope())
        if stack and stack[-1].entered is not None and not _on_stack(stack[-1].entered):
            stack.pop()  # what was left of a pass that has ended
        if stack and slot in stack[-1].caught and (stack[-1].closes or stack[-1].caught[slot].left[target] > 0):
            self._check_activation(slot, target, stack[-1])
            stack[-1].caught[slot].read = True
            return stack[-1].caught[slot].guide
        if not torch.compiler.is_compiling() and _in_backward():
            return self._read_again(slot, target, like)
        if self._frames.get(_COMPILED) and not torch.compiler.is_compiling():
            raise HotswapError(
                f"target {target!r} runs outside the graph that torch.compile made for its guide {slot.source!r}; "
                "compile with fullgraph=True, which says where the network was split, or only modules without targets"
            )
        if torch.compiler.is_compiling():
            raise HotswapError(
                f"target {target!r} is compiled apart from its guide {slot.source!r}; compile the network as a "
                'whole, or convert it with method="fx"'
            )
        raise HotswapError(
            f"target {target!r} was called without its guide {slot.source!r}, which did not run before it in this "
            "pass: call the network itself, or hotswap.revert it"
        )

    def _check_activation(self, slot: Slot, target: str, frame: _Frame) -> None:
        """Check the number of calls of the activation: at another size the network may call it more often."""
        expected = self.activations.get((slot, target))
        if slot.tap is not None and expected is not None and frame.passed[slot] not in expected:
            raise HotswapError(
                f"guide {slot.source!r} is taken after activation {slot.tap[0]!r}, which is called "
                f"{frame.passed[slot]} times between it and target {target!r}, and was {min(expected)} times when "
                "the network was looked at, so it is not clear which call is the guide's; choose another guide, or "
                "after_activation=False"
            )

    def done(self, slots: Collection[Slot], target: str, output: Any) -> None:
        """Note that a target has run: release guides without further readers, and keep them for the backward."""
        if not torch.compiler.is_compiling() and _in_backward():
            return
        stack = self._frames[_scope()]
        frame = stack[-1]
        caught = {slot: frame.caught[slot] for slot in slots}
        if not torch.compiler.is_compiling() and isinstance(output, Tensor) and output.grad_fn is not None:
            self._keep(caught, output.grad_fn)
        if frame.closes:
            return
        for slot, item in caught.items():
            item.left[target] -= 1
            if max(item.left.values()) <= 0:
                del frame.caught[slot]
        if not frame.caught and not frame.due:
            stack.pop()
        self._tidy(stack)

    def begin(self, name: str) -> None:
        """Push a module on the stack of running forwards."""
        self._running.setdefault(_scope(), []).append(name)

    def end(self) -> None:
        """Pop the module that returned or raised."""
        running = self._running[_scope()]
        running.pop()
        if not running:
            del self._running[_scope()]

    def runs(self, name: str) -> bool:
        """Whether a module is on the stack of running forwards."""
        return name in self._running.get(_scope(), [])

    def innermost(self) -> str | None:
        """The top of the stack of running forwards."""
        return self._running.get(_scope(), [None])[-1]

    def _frame(self) -> _Frame:
        scope = _scope()
        stack = self._frames.setdefault(scope, [])
        if not stack:
            stack.append(_Frame(closes=False))
            if not torch.compiler.is_compiling() and _in_backward():
                # At the end of the backward.
                torch.autograd.Variable._execution_engine.queue_callback(lambda: self._forget(scope))
        return stack[-1]

    def _tidy(self, stack: list[_Frame]) -> None:
        if not stack:
            self._forget(_scope())

    def _forget(self, scope: tuple[int, int]) -> None:
        self._frames.pop(scope, None)

    def _keep(self, caught: Mapping[Slot, _Caught], node: Any) -> None:
        for slot, item in caught.items():
            if item.kept is None:
                item.kept = item.guide.detach().requires_grad_(item.guide.requires_grad)
                if item.kept.requires_grad:
                    item.kept.register_hook(_refuse_gradient)
                alive = [kept for kept in self._kept[slot] if kept() is not None]
                self._kept[slot] = [*alive, weakref.ref(item.kept)]
        metadata = node.metadata
        metadata[_KEPT] = tuple(item.kept for item in caught.values())
        node.register_hook(functools.partial(_let_go, metadata))

    def _read_again(self, slot: Slot, target: str, like: Tensor) -> Tensor:
        """The guide that a target had in its pass, as activation checkpointing runs it a second time."""
        alive = [guide for kept in self._kept[slot] if (guide := kept()) is not None and guide.device == like.device]
        if len(alive) == 1:
            return alive[0]
        raise HotswapError(
            f"target {target!r} is run again by activation checkpointing, and "
            + (f"{len(alive)} passes wait for their backward" if alive else "its guide is gone")
            + f", so its guide {slot.source!r} is not known; "
            + ("call backward after each pass" if alive else "checkpoint with use_reentrant=False and no kept graph")
            + ", or let the part that is checkpointed hold the guide's module too"
        )


def _scope() -> tuple[int, int]:
    """The scope of a pass: a thread's forward, or a backward that runs parts of one again."""
    if torch.compiler.is_compiling():  # one pass at a time, which leaves nothing
        return _COMPILED
    return threading.get_ident(), torch._C._current_graph_task_id()


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _entered(root: nn.Module) -> FrameType | None:
    """The outermost running call of a method of `root`, or of a module around it."""
    outermost: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(first, nn.Module) and not code.co_filename.startswith(_TORCH):
            outermost = frame if any(module is root for module in first.modules()) else outermost
        frame = frame.f_back
    return outermost


def _on_stack(wanted: FrameType) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not wanted:
        frame = frame.f_back
    return frame is wanted


def _let_go(metadata: dict[str, Any], *_gradients: Any) -> None:
    if not torch._C._autograd._get_current_graph_task_keep_graph():
        metadata.pop(_KEPT, None)


def _refuse_gradient(_gradient: Tensor) -> None:
    raise HotswapError(REENTRANT)
