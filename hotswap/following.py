"""Finds the activation that follows a guide in a network that is only run, not traced."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hotswap import effects
from hotswap.errors import HotswapError
from hotswap.guided import Entry, Tap
from hotswap.naming import INPUT
from hotswap.observe import Inputs, run_once


@dataclass(frozen=True)
class Following:
    """The activation after a guide, as far as hooks can catch it."""

    tap: Tap | None
    why_none: str = ""
    by_function: bool = False  # whether there is one that is no module
    before_it: frozenset[str] = frozenset()  # targets that run between the guide and this activation

    def tap_of(self, target: str) -> Tap | None:
        """Where a target's guide is caught; None where its own output is taken."""
        return None if target in self.before_it else self.tap


def notes_of(found: Mapping[str, Following]) -> tuple[str, ...]:
    """For people: where guides are caught."""
    return tuple(
        f"guide {source!r} is caught at {following.tap[0]!r}, the activation after it"
        if following.tap
        else f"guide {source!r} is caught as its module gives it: {following.why_none}"
        for source, following in found.items()
    )


def with_taps(
    model: nn.Module, entries: Sequence[Entry], example_inputs: Inputs | None
) -> tuple[tuple[Entry, ...], Mapping[str, Following]]:
    """Entries of a plan, saying of each guide at which activation it is caught; and what a run found of it.

    Those that say it already stay as they are.
    """
    wanted = {source for e in entries if e.after_activation and not e.taps for source in e.guide} - {INPUT}
    targets = [entry.target for entry in entries]
    found = activations_after(model, wanted, targets, example_inputs) if wanted else {}

    def taps(entry: Entry) -> tuple[Tap | None, ...]:
        taken = found if entry.after_activation else {}
        return tuple(taken[source].tap_of(entry.target) if source in taken else None for source in entry.guide)

    return tuple(entry if entry.taps else replace(entry, taps=taps(entry)) for entry in entries), found


def activations_after(
    model: nn.Module, guides: Collection[str], targets: Collection[str], example_inputs: Inputs | None
) -> dict[str, Following]:
    """For each module named, the activation module that follows it through norms and residual sums.

    One run, as `observe` makes it; the network does not change.

    Args:
        model: the network.
        guides: module paths.
        targets: module paths, of those that may run before the activation does.
        example_inputs: as for `observe`.
    """
    paths = {module: path for path, module in model.named_modules()}
    waiting = frozenset(model.get_submodule(target) for target in targets)
    followers = [_Follower(model.get_submodule(guide), paths, waiting) for guide in guides]
    hooked = [m for m in paths if not isinstance(m, torch.jit.ScriptModule)]
    handles = [m.register_forward_pre_hook(f.before) for f in followers for m in hooked]
    handles += [m.register_forward_hook(f.after) for f in followers for m in hooked]

    def begin(_inputs: Sequence[Any]) -> None:
        for follower in followers:
            follower.reset()

    failure = "the network was run, and did not call it"
    try:
        run_once(model, example_inputs, begin, _Functions(followers))
    except HotswapError as error:  # a follower may have found its activation before
        failure = f"what follows it is not known, because {error}"
    finally:
        for handle in handles:
            handle.remove()
    return {guide: f.result(failure) for guide, f in zip(guides, followers, strict=True)}


class _Follower:
    """Follows one guide's output through the modules and functions that a network applies to it."""

    def __init__(self, guide: nn.Module, paths: dict[nn.Module, str], targets: Collection[nn.Module]) -> None:
        self.guide = guide
        self.paths = paths
        self.targets = targets
        self.reset()

    def result(self, failure: str) -> Following:
        """What was found, or nothing for this reason."""
        return replace(self.found or Following(None, failure), before_it=frozenset(self._before_it))

    def reset(self) -> None:
        """Forget everything."""
        self.found: Following | None = None
        self._before_it: set[str] = set()
        self._seen: dict[int, Tensor] | None = None  # the guide and what norms and sums make of it; None before it
        self._calls = Counter[nn.Module]()  # since the guide's

    def follows(self, values: Any) -> bool:
        """Whether one of these arguments is the guide, or made of it."""
        return self.found is None and self._seen is not None and any(id(x) in self._seen for x in values)

    def add(self, output: Any) -> None:
        """Follow this output too."""
        if isinstance(output, Tensor) and self._seen is not None:
            self._seen[id(output)] = output

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook: a module is about to be called."""
        if self.found is None and self._seen is not None and module in self.targets:
            self._before_it.add(self.paths[module])
        if not self.follows(args):
            return
        if effects.activates(module):
            self.found = Following((self.paths[module], self._calls[module]))
        elif not effects.leads_on(module) and next(module.children(), None) is None:
            self.found = Following(None, f"no activation comes before {self.paths[module]!r}, which reads it")

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook: a module was called."""
        self._calls[module] += 1
        if effects.leads_on(module) and self.follows(args):
            self.add(output)
        if module is self.guide and self._seen is None:
            self._seen = {}
            self._calls.clear()
            self.add(output)

    def function(self, name: str, args: Sequence[Any], output: Any) -> None:
        """A function was called."""
        if not self.follows(args):
            return
        if name in effects.ACTIVATION_NAMES:
            reason = f"the activation after it is a function, {name}, which hooks cannot catch"
            self.found = Following(None, reason, by_function=True)
        elif name in effects.SUM_NAMES or name in effects.NORM_NAMES:
            self.add(output)


class _Functions(TorchFunctionMode):
    def __init__(self, followers: Sequence[_Follower]) -> None:
        super().__init__()
        self.followers = followers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        name = getattr(func, "__name__", "").strip("_")
        for follower in self.followers:
            follower.function(name, args, output)
        return output
