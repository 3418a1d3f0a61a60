"""Groups of parameters by name, for learning rates and freezing."""

from collections.abc import Callable, Collection, Iterable

from torch import nn

from hotswap.errors import HotswapError
from hotswap.measure.compare import plain_copy
from hotswap.network.dry_run import Inputs, observe
from hotswap.network.names import closest, is_pattern, match
from hotswap.surgery import install
from hotswap.targets.guided_layer import is_learned
from hotswap.targets.plan import Plan

SWAPPED, GUIDE, SCALES, GATES = "swapped", "guide", "scales", "gates"


def parameters_of(model: nn.Module, part: str, example: Inputs) -> list[str]:
    """The names of the parameters in a part of a network.

    Args:
        model: the network.
        part: "swapped", the convolutions that are; "scales", learned guide scales; "gates", learned gates; "guide",
            all that is computed before the last guide is; the path of a module or a parameter; or a pattern of
            them, see `hotswap.network.names`. A module stands for all inside it.
        example: what the network takes, for "guide".

    Raises:
        HotswapError: where a path or a pattern means nothing, with the closest names.
    """
    names = [name for name, _ in model.named_parameters()]
    kinds: dict[str, Callable[[], Collection[str]]] = {
        SWAPPED: lambda: {n for n in _under(names, [s.target for s in _plan(model).swaps]) if not is_learned(n)},
        SCALES: lambda: [name for name in names if name.endswith(".guide_log_scale")],
        GATES: lambda: [name for name in names if name.endswith(".guide_gate")],
        GUIDE: lambda: {n for n in _under(names, _until_guide(model, example)) if not is_learned(n)},
    }
    if part in kinds:
        chosen = kinds[part]()  # may be empty: a plain control has the recipe of its swapped twin
    else:
        modules = [path for path, _ in model.named_modules() if path]
        places = [*modules, *names]
        chosen = _under(names, match(part, places, {}) if is_pattern(part) else [p for p in places if p == part])
        if not chosen:
            raise HotswapError(
                f"no parameter is in {part!r}{closest(part, [*kinds, *places])}; "
                f"a part is a path, a pattern, {', '.join(kinds)}"
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


def _until_guide(model: nn.Module, example: Inputs) -> list[str]:
    """Leaf modules that are called no later than the last guide."""
    plan = _plan(model)
    guides = {source for entry in plan.entries for source in entry.guide}
    plain = plain_copy(model)
    leaves = {path for path, module in plain.named_modules() if path and not any(module.children())}
    called = [call.path for call in observe(plain, example).calls]
    last = max((index for index, path in enumerate(called) if path in guides), default=-1)
    return [path for path in called[: last + 1] if path in leaves]
