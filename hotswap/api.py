"""The verbs: plan, apply, convert, revert."""

import copy
from dataclasses import replace
from typing import TypeVar

from torch import nn

from hotswap import surgery
from hotswap.choose import Guides, Names, Targets, choose
from hotswap.errors import HotswapError
from hotswap.naming import AUTO
from hotswap.observe import DataDependentError, Inputs, Observation, observe
from hotswap.plan import Plan, Swap

PAPER_SCALE = 1e-4
METHODS = ("auto", "fx")
Model = TypeVar("Model", bound=nn.Module)


def plan(
    model: nn.Module,
    targets: Targets = AUTO,
    guide: Guides = AUTO,
    *,
    guide_scale: float = PAPER_SCALE,
    learn_scale: bool = False,
    method: str = "auto",
    example_inputs: Inputs | None = None,
    resize: str = "bilinear",
    after_activation: bool = True,
) -> Plan:
    """What `convert` with the same arguments would do: resolved, checked to the end, and nothing changed.

    Args:
        model: any `nn.Module`; it is left as it is.
        targets: convolutions to swap: module paths, modules, `conv{stage}_{index}` aliases, globs, `re:` expressions,
            or "auto": the last spatial convolution of each of the last three stages, as in the paper.
        guide: what steers them: a module, whose output does, by itself, its path or its alias; "input", the image
            (the network's first argument); "auto": the last convolution of the second stage; a list of these, which
            count as one guide with all their channels; or a mapping from targets, named in any of these ways or by
            patterns, to one of these.
        guide_scale: what the guide is multiplied by, >= 0. The paper's 1e-4 was chosen for a VGG fed raw pixels
            and does next to nothing in most other networks: see `calibrate`.
        learn_scale: add one parameter a target, the logarithm of its scale, to be trained.
        method: how the network is edited: "fx" (a graph of the part between guide and targets), or "auto".
        example_inputs: a tensor or a tuple of arguments for one run on fake tensors, which finds aliases and
            checks the result; by default one image of the network's usual size. Only shapes and dtypes count.
        resize: how the guide gets a target's input size: "bilinear", "area" or "nearest".
        after_activation: take the guide after the activation that follows its module through norms and
            residual sums, as the paper does; False takes the module's own output.

    Raises:
        HotswapError: where anything of it cannot be done, with the reason and the closest choice that works.
    """
    return _planned(
        model, targets, guide, guide_scale, learn_scale, method, example_inputs, resize, after_activation
    )[0]


def apply(model: Model, plan: Plan, *, example_inputs: Inputs | None = None, inplace: bool = False) -> Model:
    """Carry out a plan, made by `plan` for this architecture here or on another machine.

    Returns:
        A converted deep copy, or `model` itself, converted, where `inplace` is True.

    Raises:
        HotswapError: where the plan does not fit; the network is then as it was.
    """
    names = _names(model, example_inputs)
    return _carried_out(model, surgery.prepare(model, plan, names.observation), names, example_inputs, inplace)


def convert(
    model: Model,
    targets: Targets = AUTO,
    guide: Guides = AUTO,
    *,
    guide_scale: float = PAPER_SCALE,
    learn_scale: bool = False,
    method: str = "auto",
    example_inputs: Inputs | None = None,
    resize: str = "bilinear",
    after_activation: bool = True,
    inplace: bool = False,
) -> Model:
    """Make some convolutions of a network pixel-adaptive (Su et al., CVPR 2019), keeping their trained weights.

    The result is an instance of the same class with the same `state_dict` keys and shapes (only `learn_scale`
    adds one key a target), and computes what it computed before but for what the guide changes.

    Args:
        model: see `plan`, as for all arguments but the last.
        targets: see `plan`.
        guide: see `plan`.
        guide_scale: see `plan`.
        learn_scale: see `plan`.
        method: see `plan`.
        example_inputs: see `plan`.
        resize: see `plan`.
        after_activation: see `plan`.
        inplace: convert `model` itself instead of a deep copy.

    Raises:
        HotswapError: where it cannot be done; `model` is then as it was.
    """
    _, graft, names = _planned(
        model, targets, guide, guide_scale, learn_scale, method, example_inputs, resize, after_activation
    )
    return _carried_out(model, graft, names, example_inputs, inplace)


def revert(model: Model, *, inplace: bool = False) -> Model:
    """The plain network again, with the weights as they are now; learned scales are dropped.

    Raises:
        HotswapError: where nothing in the network is swapped.
    """
    if surgery.current_plan(model) is None:
        raise HotswapError("nothing in this network is swapped, so there is nothing to revert")
    plain = model if inplace else _deep_copy(model)
    surgery.remove(plain)
    return plain


def _planned(
    model: nn.Module,
    targets: Targets,
    guide: Guides,
    guide_scale: float,
    learn_scale: bool,
    method: str,
    example_inputs: Inputs | None,
    resize: str,
    after_activation: bool,
) -> tuple[Plan, surgery.Graft, Names]:
    if not isinstance(model, nn.Module):
        raise HotswapError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
    if method not in METHODS:
        raise HotswapError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if isinstance(guide_scale, bool) or not isinstance(guide_scale, int | float):
        raise HotswapError(f"guide_scale must be a number >= 0, got {guide_scale!r}")
    names = _names(model, example_inputs)
    choice = choose(names, targets, guide)
    alias_of = names.alias_of
    swaps = []
    for path, sources in choice.guides.items():
        conv = model.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 (choose made sure)
        swaps.append(
            Swap(
                target=path,
                guide=sources,
                kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
                in_channels=conv.in_channels,
                out_channels=conv.out_channels,
                guide_scale=float(guide_scale),
                learn_scale=learn_scale,
                resize=resize,
                after_activation=after_activation,
                target_alias=alias_of.get(path),
                guide_alias=tuple(alias_of.get(source) for source in sources),
            )
        )
    notes = choice.notes
    if names.observation is None:
        notes += (f"not checked by a run on fake inputs: {names.why_unobserved}",)
    made = Plan(tuple(swaps), notes)
    graft = surgery.prepare(model, made, names.observation)
    rewritten = f"{type(graft.traced.root).__name__}.{graft.traced.method}"
    where = f" of {graft.root_path!r}" if graft.root_path else ""
    made = replace(made, notes=(*notes, f"rewrites {rewritten}{where}"))
    return made, replace(graft, plan=replace(graft.plan, notes=made.notes)), names


def _names(model: nn.Module, example_inputs: Inputs | None) -> Names:
    """Observe the network; where that fails for no fault of the user's inputs, paths still work, aliases do not."""
    try:
        return Names(model, observe(model, example_inputs), None)
    except DataDependentError as error:
        return Names(model, None, str(error))
    except HotswapError as error:
        if example_inputs is not None:
            raise
        return Names(model, None, str(error))


def _carried_out(
    model: Model, graft: surgery.Graft, names: Names, example_inputs: Inputs | None, inplace: bool
) -> Model:
    converted = model if inplace else _deep_copy(model)
    surgery.install(converted, graft)
    if names.observation is not None:
        try:
            _check_runs(converted, names.observation, example_inputs)
        except HotswapError:
            surgery.remove(converted)
            raise
    return converted


def _check_runs(converted: nn.Module, before: Observation, example_inputs: Inputs | None) -> None:
    """One run of the swapped network on fake tensors, before anybody gets to see it."""
    after = observe(converted, example_inputs)
    if before.calls[-1].output_shape != after.calls[-1].output_shape:
        raise HotswapError(
            f"the swapped network gives {after.calls[-1].output_shape} where the plain one gives "
            f"{before.calls[-1].output_shape}; this is a bug in hotswap, please report it"
        )


def _deep_copy(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a user's module does when copied
        raise HotswapError(
            f"the network cannot be deep-copied ({type(error).__name__}: {error}); pass inplace=True"
        ) from error
