"""The verbs: plan, apply, convert, revert."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal, TypeVar

from torch import nn

from hotswap.arguments import check_values, parse_projection, require_nothing_measured, require_of_output
from hotswap.choices import FX, METHODS
from hotswap.errors import HotswapError
from hotswap.measure.calibrate import calibrate
from hotswap.measure.compare import plain_copy
from hotswap.measure.directions import principal_projections
from hotswap.measure.scores import found, without_output
from hotswap.network.batches import Batches, KnownInputs, Pick, as_batches
from hotswap.network.copying import checked_copy
from hotswap.network.dry_run import Inputs, compiled_in_place
from hotswap.network.names import AUTO
from hotswap.surgery import install
from hotswap.surgery.prepare import IN_PLACE, Preparation, Prepared, carry_out, sharing_weights
from hotswap.surgery.self_check import SelfCheck
from hotswap.targets.automatic import explained, without_auto
from hotswap.targets.choose import Guides, Targets, choose, listed
from hotswap.targets.choose import scale as checked
from hotswap.targets.choose_enlargements import split
from hotswap.targets.convolution import shape_of
from hotswap.targets.entries import Resize, Swap
from hotswap.targets.forms import GUIDES_AS, Form
from hotswap.targets.guide_spaces import Space, scale_of
from hotswap.targets.kernels import DEFAULT_KERNEL
from hotswap.targets.lookup import Name, look_up
from hotswap.targets.output import Output
from hotswap.targets.plan import Plan
from hotswap.targets.sites import find

PAPER_SCALE = 1e-4
Scales = float | Mapping[Name, float] | Literal["auto"]
Model = TypeVar("Model", bound=nn.Module)


def plan(
    model: nn.Module,
    targets: Targets | Output = AUTO,
    guide: Guides = AUTO,
    *,
    guide_scale: Scales | None = None,
    learn_scale: bool = False,
    gate: bool | int = False,
    kernel: str = DEFAULT_KERNEL,
    conserve: str | None = None,
    method: str = "auto",
    example_inputs: Inputs | None = None,
    resize: str = "bilinear",
    footprint: int | Sequence[int] | str = AUTO,
    space: Space | str | None = AUTO,
    bounded: bool | str = AUTO,
    after_activation: bool = True,
    check: bool = True,
) -> Plan:
    """What `convert` with the same arguments would do: resolved, checked to the end, and nothing changed.

    Args:
        model: any `nn.Module`; it is left as it is. What is swapped in it already stays so.
        targets: convolutions to swap: module paths, modules, `conv{stage}_{index}` aliases, globs, `re:` expressions,
            or "paper": the last spatial convolution of each of the last three stages, as there. Enlargements to
            guide (`nn.Upsample`, `F.interpolate`, fixed bilinear transposed convolutions): `resize_{index}` aliases,
            modules, their paths, "resize": those that guiding helps, of scores at the end of the network (a note
            names those it leaves); or "resize_*": every one. The scores that the network gives, along the image
            behind it (see `hotswap.Output`): "output_guided", which needs no training, for networks that end with
            learned layers; "output" and "output_crf", which do. A list may mix them. "auto" is what gained most on
            real labels untrained: "resize", where it takes any; else "output" where the network gives scores of
            classes; else, or with a guide other than the image, "paper". A note says which.
        guide: what steers them: a module object, its path, or its alias, for its output; "input", the image
            (the network's first argument); "auto": the image, for convolutions the last one of the second stage; a
            list of these, which count as one guide with all their channels; or a mapping from targets, named in any
            of these ways or by patterns, to one of these.
        guide_scale: what the guide is multiplied by, >= 0, or a mapping from targets to that. The paper's 1e-4 was
            chosen for a VGG fed raw pixels and does next to nothing in most other networks: see `calibrate`.
        learn_scale: add one parameter a target, the logarithm of its scale, to be trained.
        gate: have 1 + a (K - 1) take K's place in convolutions and pools, with a learned and 0 at first: the network
            is then the plain one to the last bit, and a has a gradient from the first step, the larger the
            further K is from 1: calibrate it. True, or 1, is one a for a target; n one for each of n groups of its
            output channels, which takes a plain convolution more.
        kernel: the function K of the scaled squared distance, by its name in pac_ops: "gaussian", or
            "inv_{alpha}_{lambda}[_asym]_fixed", which is divided by its value at distance 0.
        conserve: "window" scales K at every pixel so that its sum over the window is the number of taps inside the
            image; None leaves it, as in the paper. "mean" needs data: see `convert` and `calibrate`.
        method: how the guide reaches the targets: "fx" rewrites the part of the network between them as a graph;
            "hooks" catches it while the network runs, which also works where the code cannot be traced; "auto" is
            "fx" where that can be done, and a note in the plan says why where it cannot.
        example_inputs: a tensor or a tuple of arguments for one run on fake tensors, which finds aliases and
            checks the result; by default one image of the network's usual size. Values count only where the
            network's code looks at them: it is then run on numbers.
        resize: how the guide gets a target's input size: "bilinear", "area" or "nearest".
        footprint: how many coarse pixels a guided enlargement weighs along each axis: 2, those of the original, 4, 6
            or 8; or one for each of several steps, all but the first by 2; of more steps than the factor has, the
            first follow halvings of the map (see `pac_ops.pacresize2d`). "auto" is (6, 4, 2) for factors
            of 8, 4 and 2; but of features, and of maps of up to 3 channels, (4, 2) for 4 and 2 for 2.
            Whatever it is, with K = 1 a bilinear enlargement stays as it was.
        space: what an enlargement guided by "input" makes of the image: "lab" (CIE L*a*b*) or "rgb", for which the
            normalisation is undone that the network declares or data show; a `GuideSpace` that says it; a function
            [B, C, H, W] -> [B, G, H, W]; or None, the image as it is. "auto" is "lab" where the normalisation is
            known. The plan says which.
        bounded: keep every pixel of an enlargement within the range of the 2 x 2 it comes from: for depth, flow and
            mattes. "auto" does for maps of up to 3 channels, and not for scores of more classes.
        after_activation: take the guide after the activation that follows its module through norms and
            residual sums, as the paper does; False takes the module's own output.
        check: run a swapped copy beside the network before anything else, both on numbers, and see that with its
            guide scales at 0 it gives what the network gives: up to four forward passes. Where it does not, hooks are
            tried, or it is refused.

    Raises:
        HotswapError: where anything of it cannot be done, with the reason and the closest choice that works.
    """
    require_nothing_measured(guide_scale, conserve)
    swapping = {
        "learn_scale": learn_scale,
        "gate": gate,
        "kernel": kernel,
        "conserve": conserve,
        "resize": resize,
        "after_activation": after_activation,
    }
    form = Form.checked(footprint, space, bounded)
    known = KnownInputs(example_inputs)
    return _planned(model, targets, guide, guide_scale, method, known, swapping, form, check).plan


def apply(
    model: Model, plan: Plan, *, example_inputs: Inputs | None = None, inplace: bool = False, check: bool = True
) -> Model:
    """Carry out a plan, made by `plan` for this architecture here or on another machine.

    Args:
        model: the network.
        plan: what to swap.
        example_inputs: see `plan`.
        inplace: convert `model` itself instead of a deep copy.
        check: see `plan`.

    Returns:
        A converted deep copy, or `model` itself, converted, where `inplace` is True.

    Raises:
        HotswapError: where the plan does not fit; the network is then as it was.
    """
    if install.current_plan(model) is not None:
        raise HotswapError(
            "the network is converted already: hotswap.revert it first, or hotswap.convert more targets"
        )
    names = look_up(model, example_inputs)
    selfcheck = SelfCheck(model, example_inputs) if check else None
    return carry_out(model, Preparation(example_inputs, selfcheck).prepare(names, plan, plan.method), inplace)


def convert(
    model: Model,
    targets: Targets | Output = AUTO,
    guide: Guides = AUTO,
    *,
    guide_scale: Scales | None = None,
    learn_scale: bool = False,
    gate: bool | int = False,
    projection: int | tuple[int, int] = 0,
    kernel: str = DEFAULT_KERNEL,
    conserve: str | None = AUTO,
    calibrate_on: Batches | None = None,
    inputs: Pick | None = None,
    deviation: float | str = AUTO,
    method: str = "auto",
    example_inputs: Inputs | None = None,
    resize: str = "bilinear",
    footprint: int | Sequence[int] | str = AUTO,
    space: Space | str | None = AUTO,
    bounded: bool | str = AUTO,
    after_activation: bool = True,
    inplace: bool = False,
    check: bool = True,
) -> Model:
    """Make some convolutions of a network pixel-adaptive (Su et al., CVPR 2019), keeping their trained weights.

    The result is an instance of the same class with the same `state_dict` keys and shapes (only `learn_scale`,
    `gate` and `projection` add one key a target each), and computes what it computed before but for what the guide
    changes.

    Args:
        model: see `plan`, as for all arguments that are not explained here.
        targets: see `plan`.
        guide: see `plan`.
        guide_scale: a number, a mapping, or "auto": what makes the mean of 1 - K on `calibrate_on` equal `deviation`.
            By default "auto" where there is data, else as in `plan`.
        learn_scale: see `plan`.
        gate: see `plan`.
        projection: learn a projection of each convolution's guide to so many channels; (channels, window) has one
            over a window of 3 pixels, not 1. It starts from the principal directions of the guide on `calibrate_on`.
        kernel: see `plan`.
        conserve: "mean" divides K at each tap by its mean there on `calibrate_on`; see `plan` for "window" and None.
            By default "mean" where there is data, else None.
        calibrate_on: a few batches of inputs such as the network will see: the result is calibrated on them, as by
            `hotswap.calibrate`, and `hotswap.status` tells what came of it. Tuples such as (image, label) and
            mappings are taken as by `verify`.
        inputs: a function that picks what the network gets of a batch: see `verify`.
        deviation: see guide_scale; "auto" is 0.3 for convolutions and 0.5 for enlargements.
        method: see `plan`.
        example_inputs: see `plan`.
        resize: see `plan`.
        footprint: see `plan`.
        space: see `plan`.
        bounded: see `plan`.
        after_activation: see `plan`.
        inplace: convert `model` itself instead of a deep copy.
        check: see `plan`.

    Raises:
        HotswapError: where it cannot be done; `model` is then as it was.
    """
    to_calibrate = guide_scale == AUTO or (guide_scale is None and calibrate_on is not None)
    scale = None if guide_scale is None or to_calibrate else guide_scale
    if conserve == AUTO:
        conserve = None if calibrate_on is None else "mean"
    if calibrate_on is None:
        require_nothing_measured(guide_scale, conserve, projection)
        if deviation != AUTO:
            raise HotswapError(
                f"deviation is reached on data: give some as calibrate_on, or leave it out, got {deviation!r}"
            )
    check_values({"conserve": conserve})
    swapping = {
        "learn_scale": learn_scale,
        "gate": gate,
        "kernel": kernel,
        "conserve": conserve if calibrate_on is None else None,  # calibrate sets it
        "resize": resize,
        "after_activation": after_activation,
    }
    if inplace and calibrate_on is not None and install.current_plan(model) is not None:
        raise HotswapError(
            "inplace must be False where a converted network is converted and calibrated once more: were the "
            "calibration to fail, its scales could not be put back; or hotswap.calibrate it afterwards"
        )
    form = Form.checked(footprint, space, bounded)
    known = KnownInputs(example_inputs, () if calibrate_on is None else as_batches(model, calibrate_on, inputs))
    to = parse_projection(projection)
    prepared = _planned(model, targets, guide, scale, method, known, swapping, form, check, to)
    converted = carry_out(model, prepared, inplace)
    if known.batches:
        try:
            calibrate(converted, known.batches, deviation=deviation if to_calibrate else None, conserve=conserve)
        except BaseException:
            install.remove(converted)
            raise
    return converted


def check_swapped(model: nn.Module, example_inputs: Inputs | None = None) -> tuple[str, ...]:
    """Compare a swapped network, at guide scale 0, with its plain self, as `convert` does; nothing in it changes.

    Returns:
        Notes on what could not be compared.

    Raises:
        HotswapError: where it gives other numbers than rounding explains.
    """
    check = SelfCheck(plain_copy(model), example_inputs)
    check.compare(sharing_weights(model))
    return check.notes


def revert(model: Model, *, inplace: bool = False) -> Model:
    """The plain network again, with the weights as they are now; learned scales and gates are dropped.

    Raises:
        HotswapError: where nothing in the network is swapped.
    """
    if not install.records(model):
        raise HotswapError("nothing in this network is swapped, so there is nothing to revert")
    plain = model if inplace else checked_copy(model, hint=IN_PLACE)
    install.remove(plain)
    return plain


def _planned(
    model: nn.Module,
    targets: Targets | Output,
    guide: Guides,
    guide_scale: Scales | None,
    method: str,
    inputs: KnownInputs,
    swapping: Mapping[str, Any],
    form: Form,
    check: bool,
    projection: tuple[int, int] = (0, 1),
) -> Prepared:
    check_values(swapping)
    if not isinstance(model, nn.Module):
        raise HotswapError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
    if method not in METHODS:
        raise HotswapError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    example_inputs = inputs.example
    swapped = install.current_plan(model)
    named: list[Any] = [targets] if isinstance(targets, Output) else listed(targets)
    if swapped is not None:
        install.require_own_input(model)
        # Names are looked up in a plain copy.
        named, guide, guide_scale = (_by_path(model, x) for x in (named, guide, guide_scale))
    names = look_up(model if swapped is None else plain_copy(model), example_inputs)
    swaps = [] if swapped is None else list(swapped.swaps)
    resizes = [] if swapped is None else list(swapped.resizes)
    sites = cache(partial(find, names.model, example_inputs, tuple(resizes)))  # one run, where anything needs it
    named, guide, guide_scale, about = without_auto(names, named, guide, guide_scale, form.footprint, sites)
    others, asked = without_output(named)
    if asked is not None and not others:
        with explained(about):
            require_of_output(guide, guide_scale, {**swapping, "footprint": form.footprint, "bounded": form.bounded})
    alias_of = names.alias_of
    before = {swap.target for swap in swaps} | {resize.name for resize in resizes}
    scales = PAPER_SCALE if guide_scale is None else guide_scale
    output = None if swapped is None else swapped.output
    if asked is not None and output is not None:
        raise HotswapError("the output is refined already: hotswap.revert the network first")
    wanted = split(names, others, guide, scales, form.footprint, sites)
    chosen, notes = wanted.enlargements, about + wanted.notes
    if wanted.others or not (chosen or asked):
        with explained(about):
            convolutions, further = choose(names, wanted.others, wanted.guide, wanted.guide_scale)
        chosen, notes = chosen + convolutions, notes + further
    spaces, further = form.spaces(model, {each.name: each.guide for each in wanted.enlargements}, inputs.images)
    if asked is not None:
        with explained(about):
            given = None if guide_scale is None or isinstance(guide_scale, Mapping) else checked(guide_scale)
            output, on_output = found(asked, names.model, inputs.numbers, form, inputs.images, given)
        notes += on_output
    earlier = () if swapped is None else swapped.notes
    notes += (*(note for note in earlier if note.startswith(GUIDES_AS) and note not in further), *further)
    for each in chosen:
        if each.name in before:
            continue
        common: dict[str, Any] = {
            "target": each.target,
            "guide": each.guide,
            "guide_scale": each.guide_scale,
            "target_alias": each.alias,
            "guide_alias": tuple(alias_of.get(source) for source in each.guide),
            "learn_scale": swapping["learn_scale"],
            "after_activation": swapping["after_activation"],
        }
        if (site := each.site) is not None:
            own_scale = scale_of(spaces[each.name]) if guide_scale is None else None
            common |= {"guide_scale": each.guide_scale if own_scale is None else own_scale}
            entries = form.of(site, spaces[each.name])
            resizes.append(Resize(**common, **entries, call=site.call, mode=site.mode, at=site.at))
        else:
            size, ins, outs = shape_of(model.get_submodule(each.target))
            shape = {"kernel_size": size, "in_channels": ins, "out_channels": outs}
            swaps.append(Swap(**{**swapping, **common, **shape, "gate": (0.0,) * int(swapping["gate"])}))
    new = [each.name for each in chosen]
    if new and before.issuperset(new):
        raise HotswapError(
            f"these targets are swapped already ({', '.join(new)}): name others, or hotswap.revert the network first"
        )
    options = (("kernel", DEFAULT_KERNEL, swapping["kernel"]), ("gate", False, swapping["gate"]))
    for option, usual, given in (*options, ("projection", 0, projection[0])):
        if given != usual and all(swap.target in before for swap in swaps):
            raise HotswapError(
                f"{option} must be {usual!r} where no convolution is a target, as only these have it, got {given!r}"
            )
    if before:
        notes += (f"{len(before)} were swapped before, and stay as they are",)
    if compiled_in_place(model):
        notes += ("Module.compile was called on it, which copies do not keep: call it on the converted network",)
    if names.observation is None:
        notes += (f"not checked by a run: {names.why_unobserved}",)
    resolved = Plan(tuple(swaps), notes=notes, resizes=tuple(resizes), output=output, enlargements=wanted.considered)
    by_fx = [swap.target for swap in swapped.swaps] if swapped is not None and swapped.method == FX else []
    selfcheck = SelfCheck(names.model, inputs.numbers) if check else None
    prepared = Preparation(example_inputs, selfcheck, by_fx).prepare(names, resolved, method)
    if projection[0]:
        measured = carry_out(sharing_weights(names.model), prepared, inplace=True)
        added = [swap.target for swap in swaps if swap.target not in before]
        rows = principal_projections(measured, inputs.batches, added, *projection)
        started = (
            replace(swap, projection=rows[swap.target], projection_window=projection[1])
            if swap.target in rows
            else swap
            for swap in swaps
        )
        resolved = replace(resolved, swaps=tuple(started))
        prepared = Preparation(example_inputs, None, by_fx).prepare(names, resolved, method)
    return prepared.noted(*(graft.note for graft in prepared.grafts))


def _by_path(model: nn.Module, named: Any) -> Any:
    """The same names, with paths in place of modules of this network."""
    if isinstance(named, nn.Module):
        return next((path for path, module in model.named_modules() if module is named), named)
    if isinstance(named, Mapping):
        return {_by_path(model, key): _by_path(model, value) for key, value in named.items()}
    return [_by_path(model, item) for item in named] if isinstance(named, list | tuple) else named
