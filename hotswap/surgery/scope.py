"""Where in a network a plan is carried out, and whether it fits there."""

from collections.abc import Iterable, Mapping

from torch import nn

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Observation
from hotswap.network.names import INPUT, closest
from hotswap.surgery.containers import CODES
from hotswap.targets.convolution import shape_of, why_not_swappable
from hotswap.targets.enlargement import mode_of, why_not_enlarged
from hotswap.targets.enlargement_checks import check_mode
from hotswap.targets.entries import Resize, Swap
from hotswap.targets.plan import Plan


def check_fits(modules: Mapping[str, nn.Module], plan: Plan) -> None:
    """Check that a network has what a plan names.

    Args:
        modules: of the network, by path.
        plan: what to swap.

    Raises:
        HotswapError: where a module is missing, or is not what it was when the plan was made.
    """
    for entry in plan.entries:
        for role, path in (("target", entry.target), *(("guide", path) for path in entry.guide if path != INPUT)):
            if path not in modules:
                raise HotswapError(f"{role} {path!r} is no module of this network{closest(path, modules)}")
        if isinstance(entry, Swap):
            _check_convolution(modules[entry.target], entry)
        else:
            _check_enlargement(modules[entry.target], entry)
        for guide in _module_guides(entry):
            if guide in ("", entry.target) or entry.target.startswith(f"{guide}."):
                image = "" if isinstance(entry, Swap) else f', or "{INPUT}"'
                raise HotswapError(
                    f"guide {guide!r} contains target {entry.name!r}, so it is not known before it; "
                    f"name a module that runs earlier{image}"
                )
    targets = {swap.target for swap in plan.swaps}
    for target in sorted(targets):
        if around := targets.intersection(parents(target)):
            raise HotswapError(
                f"target {target!r} lies inside target {min(around)!r}, whose own forward runs as it is; "
                "name one of them"
            )


def inside_paths(modules: Mapping[str, nn.Module], plan: Plan) -> set[str]:
    """Every path of every module that the plan names: one shared by two parents may be called by either."""
    return {path for entry in plan.entries for path in all_paths(modules, entry.target, *_module_guides(entry))}


def called_root(
    modules: Mapping[str, nn.Module], plan: Plan, inside: Iterable[str], observation: Observation | None
) -> str:
    """The deepest module around all of `inside` that is called, rather than being only a container.

    Where the image guides, the network itself.
    """
    if any(INPUT in entry.guide for entry in plan.entries):  # which is known in the network's own forward only
        return ""
    first, *others = (parents(path) for path in sorted(inside))
    for path in first:
        if not all(path in other for other in others):
            continue
        module = modules[path]
        called = observation is None or any(observation.first(name) for name in all_paths(modules, path))
        called = called and CODES not in module.__dict__  # whose call needs what the code around it hands on
        if path == "" or (called and type(module).forward is not nn.Module.forward):
            return path
    return ""


def parents(path: str) -> list[str]:
    """Paths of all modules around a path, from the nearest to the network itself, which is ""."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, -1, -1)]


def all_paths(modules: Mapping[str, nn.Module], *paths: str) -> set[str]:
    """Every path under which these modules are registered: one shared by two parents may be called by either."""
    wanted = {id(modules[path]) for path in paths}
    return {path for path, module in modules.items() if id(module) in wanted}


def _check_convolution(target: nn.Module, swap: Swap) -> None:
    if reason := why_not_swappable(target):
        raise HotswapError(f"target {swap.target!r} cannot be swapped: {reason}")
    planned = (swap.kernel_size, swap.in_channels, swap.out_channels)
    actual = shape_of(target)
    if planned != actual:
        raise HotswapError(
            f"target {swap.target!r} must be, by the plan, a layer of (window, input, output channels) "
            f"{planned}, got {actual}; the plan was made for another network"
        )


def _check_enlargement(target: nn.Module, resize: Resize) -> None:
    if resize.call is not None:
        return
    if reason := why_not_enlarged(mode_of(target), target):
        raise HotswapError(f"target {resize.name!r} cannot be swapped: {reason}")
    check_mode(resize, mode_of(target))


def _module_guides(entry: Swap | Resize) -> tuple[str, ...]:
    return tuple(source for source in entry.guide if source != INPUT)


def module_at(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; None where there is none any more."""
    module: nn.Module | None = root
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module
