"""Activations, norms and in-place operations: as nodes of a graph, and as calls in a network that is only run."""

import operator
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Inputs, hookable, removed_afterwards, run_once
from hotswap.network.names import INPUT
from hotswap.targets.guided_layer import Entry, Tap

_ACTIVATION_NAMES = {
    "celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "relu", "relu6",
    "rrelu", "selu", "sigmoid", "silu", "softplus", "swish", "tanh",
}  # fmt: skip
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
# Layers that drop or pass on values between a norm and its residual sum; timm's and torchvision's by name.
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
_PASSING_NAMES = {"DropPath", "StochasticDepth"}
_LEADING_ON = {"add", "iadd", "radd", "batch_norm", "instance_norm", "group_norm", "layer_norm"}  # functions

_IN_PLACE_OPERATORS: set[Any] = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def is_activation(node: Node, root: nn.Module) -> bool:
    """Whether a node applies an elementwise non-linearity."""
    if node.op == "call_module":
        return activates(root.get_submodule(str(node.target)))
    return _function_name(node).rstrip("_") in _ACTIVATION_NAMES


def activates(module: nn.Module) -> bool:
    """Whether a module applies an elementwise non-linearity, be it after a norm."""
    # timm's norm layers may hold their activation as `act`.
    fused = getattr(module, "act", None) if isinstance(module, _NORMS) else None
    return _is_activation_module(module if fused is None else fused)


def leads_on(module: nn.Module) -> bool:
    """Whether a module can come between a guide and its activation: a norm, or one that passes values on."""
    return isinstance(module, (*_NORMS, *_PASSING)) or type(module).__name__ in _PASSING_NAMES


def after_activation(node: Node, root: nn.Module) -> Node:
    """The activation that follows a node through norms and residual sums, or the node itself if none does."""
    current = node
    while True:
        activated = [user for user in current.users if is_activation(user, root)]
        if activated:
            return activated[0]
        onward = [user for user in current.users if _leads_on(user, root)]
        if len(onward) != 1:
            return node
        current = onward[0]


def is_in_place(node: Node, root: nn.Module) -> bool:
    """Whether a node writes its result over its first input."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = _function_name(node)
    asked = node.kwargs.get("inplace", False) or any(argument is True for argument in node.args[1:])
    return node.target in _IN_PLACE_OPERATORS or name.endswith("_") or bool(asked)


def _leads_on(node: Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return leads_on(root.get_submodule(str(node.target)))
    return _function_name(node).strip("_") in _LEADING_ON


def _is_activation_module(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__ == "torch.nn.modules.activation":
        return kind.__name__.lower() in {name.replace("_", "") for name in _ACTIVATION_NAMES}
    # timm has its own classes for activations older PyTorch lacked.
    return kind.__module__.startswith("timm.layers.activations")


def _function_name(node: Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


# --- in a network that is run, not traced ---


@dataclass(frozen=True)
class NextActivation:
    """The activation after a guide, as far as hooks can catch it."""

    tap: Tap | None
    why_none: str = ""
    by_function: bool = False  # whether the activation is a function, which has no hooks
    before_it: frozenset[str] = frozenset()  # targets that run between the guide and this activation

    def tap_of(self, target: str) -> Tap | None:
        """Where a target's guide is caught; None where its own output is taken."""
        return None if target in self.before_it else self.tap


def notes_of(activations: Mapping[str, NextActivation]) -> tuple[str, ...]:
    """Notes for people: where guides are caught."""
    return tuple(
        f"guide {source!r} is caught at {following.tap[0]!r}, the activation after it"
        if following.tap
        else f"guide {source!r} is caught as its module gives it: {following.why_none}"
        for source, following in activations.items()
    )


def with_taps(
    model: nn.Module, entries: Sequence[Entry], example_inputs: Inputs | None
) -> tuple[tuple[Entry, ...], Mapping[str, NextActivation]]:
    """Entries of a plan with the activations that their guides are caught at; and those activations, by guide.

    Entries that have them already stay as they are.
    """
    wanted = {source for e in entries if e.after_activation and not e.taps for source in e.guide} - {INPUT}
    targets = [entry.target for entry in entries]
    activations = activations_after(model, wanted, targets, example_inputs) if wanted else {}

    def taps(entry: Entry) -> tuple[Tap | None, ...]:
        after = activations if entry.after_activation else {}
        return tuple(after[source].tap_of(entry.target) if source in after else None for source in entry.guide)

    return tuple(entry if entry.taps else replace(entry, taps=taps(entry)) for entry in entries), activations


def activations_after(
    model: nn.Module, guides: Collection[str], targets: Collection[str], example_inputs: Inputs | None
) -> dict[str, NextActivation]:
    """The activation module that follows each guide through norms and residual sums, by the guide's path.

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
    hooked = [m for m in paths if hookable(m)]
    handles = [m.register_forward_pre_hook(f.before) for f in followers for m in hooked]
    handles += [m.register_forward_hook(f.after) for f in followers for m in hooked]

    def begin() -> None:
        for follower in followers:
            follower.reset()

    failure = "the network was run, and did not call it"
    try:
        with removed_afterwards(handles):
            run_once(model, example_inputs, begin, _Functions(followers))
    except HotswapError as error:  # a follower may have found its activation before
        failure = f"what follows it is not known, because {error}"
    return {guide: f.result(failure) for guide, f in zip(guides, followers, strict=True)}


class _Follower:
    """Follows one guide's output through the modules and functions that a network applies to it."""

    def __init__(self, guide: nn.Module, paths: dict[nn.Module, str], targets: Collection[nn.Module]) -> None:
        self.guide = guide
        self.paths = paths
        self.targets = targets
        self.reset()

    def result(self, failure: str) -> NextActivation:
        """The activation, or none for this reason."""
        return replace(self.activation or NextActivation(None, failure), before_it=frozenset(self._before_it))

    def reset(self) -> None:
        """Forget everything."""
        self.activation: NextActivation | None = None
        self._before_it: set[str] = set()
        self._seen: dict[int, Tensor] | None = None  # the guide and what norms and sums make of it; None before it
        self._calls = Counter[nn.Module]()  # since the guide's

    def follows(self, values: Any) -> bool:
        """Whether one of these arguments is the guide, or made of it."""
        return self.activation is None and self._seen is not None and any(id(x) in self._seen for x in values)

    def add(self, output: Any) -> None:
        """Follow this output too."""
        if isinstance(output, Tensor) and self._seen is not None:
            self._seen[id(output)] = output

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook: a module is about to be called."""
        if self.activation is None and self._seen is not None and module in self.targets:
            self._before_it.add(self.paths[module])
        if not self.follows(args):
            return
        if activates(module):
            self.activation = NextActivation((self.paths[module], self._calls[module]))
        elif not leads_on(module) and next(module.children(), None) is None:
            self.activation = NextActivation(
                None, f"no activation comes before {self.paths[module]!r}, which reads it"
            )

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook: a module was called."""
        self._calls[module] += 1
        if leads_on(module) and self.follows(args):
            self.add(output)
        if module is self.guide and self._seen is None:
            self._seen = {}
            self._calls.clear()
            self.add(output)

    def function(self, name: str, args: Sequence[Any], output: Any) -> None:
        """A function was called."""
        if not self.follows(args):
            return
        if name in _ACTIVATION_NAMES:
            reason = f"the activation after it is a function, {name}, which hooks cannot catch"
            self.activation = NextActivation(None, reason, by_function=True)
        elif name in _LEADING_ON:
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
