"""Parts of a network by name, for learning rates and freezing."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import nn

from hotswap.errors import HotswapError
from hotswap.measure.compare import plain_copy
from hotswap.network.dry_run import Inputs, observe
from hotswap.network.names import closest, is_pattern, match
from hotswap.surgery import install
from hotswap.targets.guided_layer import OUTPUT_LAYER, is_learned
from hotswap.targets.plan import Plan

SWAPPED, GUIDE = "swapped", "guide"
_LEARNED = {"scales": "guide_log_scale", "gates": "guide_gate", "projections": "guide_projection"}
# Of the refinement of an output: all of it, and what makes its guide.
_REFINEMENT = {
    "refinement": [OUTPUT_LAYER],
    "refinement_guide": [f"{OUTPUT_LAYER}.{name}" for name in ("first", "last", "scales")],
}


def parameter_groups(
    model: nn.Module, lr: float, factors: Mapping[str, float], example_inputs: Inputs | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimiser of PyTorch's, of all parameters that require a gradient, with a rate for each part.

    Args:
        model: the network.
        lr: the learning rate of what is in no part.
        factors: what it is multiplied by in a part of the network, see `parameters_of`: {"gates": 10, "head.*": 2}.
            Where a parameter is in several, the first counts.
        example_inputs: what the network takes, for the part "guide"; by default an image of its usual size.

    Returns:
        `{"params": [...], "lr": ...}` for each rate.

    Raises:
        HotswapError: where a part is not there, or nothing is left to be trained.
    """
    factor_of: dict[str, float] = {}
    for part, factor in factors.items():
        for name in parameters_of(model, part, example_inputs):
            factor_of.setdefault(name, factor)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(factor_of.get(name, 1.0), []).append(parameter)
    if not groups:
        raise HotswapError(
            "model must have a parameter that requires a gradient, got none; unfreeze what is to be tuned"
        )
    return [{"params": group, "lr": lr * factor} for factor, group in groups.items()]


def parameters_of(model: nn.Module, part: str, example: Inputs | None) -> list[str]:
    """The names of the parameters in a part of a network.

    Args:
        model: the network.
        part: "swapped", the convolutions that are; "scales", "gates" and "projections", which swaps learn;
            "refinement" of an output, and of that "refinement_guide", what makes its guide; "guide", all that is
            computed before the last guide is; the path of a module or a parameter; or a pattern of them, see
            `hotswap.network.names`. A module stands for all inside it.
        example: what the network takes, for "guide"; None for an image of its usual size.

    Raises:
        HotswapError: where a path or a pattern means nothing, with the closest names.
    """
    names = [name for name, _ in model.named_parameters()]
    kinds: dict[str, Callable[[], Collection[str]]] = {
        SWAPPED: lambda: {n for n in _under(names, [s.target for s in _plan(model).swaps]) if not is_learned(n)},
        GUIDE: lambda: {n for n in _under(names, _until_guide(model, example)) if not is_learned(n)},
    }
    if part in _REFINEMENT:
        chosen: Collection[str] = _under(names, _REFINEMENT[part])
    elif part in _LEARNED:
        chosen = [name for name in names if name.rpartition(".")[2] == _LEARNED[part]]
    elif part in kinds:
        chosen = kinds[part]()  # may be empty: a plain control has the recipe of its swapped twin
    else:
        modules = [path for path, _ in model.named_modules() if path]
        places = [*modules, *names]
        chosen = _under(names, match(part, places, {}) if is_pattern(part) else [p for p in places if p == part])
        if not chosen:
            raise HotswapError(
                f"no parameter is in {part!r}{closest(part, [*kinds, *_LEARNED, *_REFINEMENT, *places])}; "
                f"a part is a path, a pattern, {', '.join([*kinds, *_LEARNED, *_REFINEMENT])}"
            )
    return [name for name in names if name in chosen]


def freeze(model: nn.Module, parts: Iterable[str], example: Inputs) -> None:
    """Freeze some parts of a network. Their norms keep learning statistics, as in any training.

    Raises:
        HotswapError: where a part is not there; nothing is frozen then.
    """
    frozen = {name for part in parts for name in parameters_of(model, part, example)}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def _plan(model: nn.Module) -> Plan:
    return install.current_plan(model) or Plan(())


def _under(names: Iterable[str], places: Collection[str]) -> set[str]:
    """The parameters at or under some paths."""
    return {name for name in names if any(f"{name}.".startswith(f"{place}.") for place in places)}


def _until_guide(model: nn.Module, example: Inputs | None) -> list[str]:
    """Leaf modules that are called no later than the last guide."""
    plan = _plan(model)
    guides = {source for entry in plan.entries for source in entry.guide}
    plain = plain_copy(model)
    leaves = {path for path, module in plain.named_modules() if path and not any(module.children())}
    called = [call.path for call in observe(plain, example).calls]
    last = max((index for index, path in enumerate(called) if path in guides), default=-1)
    return [path for path in called[: last + 1] if path in leaves]
