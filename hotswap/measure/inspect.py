"""Every convolution and enlargement of a network, and whether it can be swapped or guide."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn

from hotswap.errors import HotswapError
from hotswap.measure.compare import plain_copy
from hotswap.measure.status import status
from hotswap.network.dry_run import Call, Inputs
from hotswap.network.names import AUTO
from hotswap.tables import render
from hotswap.targets.choose import PAPER, as_paper, why_not
from hotswap.targets.convolution import SwappedLayer, why_not_swappable
from hotswap.targets.elsewhere import elsewhere
from hotswap.targets.entries import Resize, Swap, named, why_not_guided
from hotswap.targets.lookup import Names, look_up
from hotswap.targets.own_convolution import own_weight
from hotswap.targets.plan import Plan
from hotswap.targets.sites import find
from hotswap.targets.verdicts import factor, place, times, verdict
from hotswap.targets.window import sliding_of
from pac_ops.geometry import Pair


@dataclass(frozen=True)
class ConvInfo:
    """One convolution; or another layer that can be swapped like one, such as an average pool."""

    path: str
    alias: str | None  # conv{stage}_{index}; None for 1x1 windows, and what is no nn.Conv2d
    kind: str  # its class
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    in_channels: int
    out_channels: int
    output_size: tuple[int, int] | None  # height and width; None where it was not called
    parameters: int
    multiply_adds: int | None  # of its first call, one image
    why_no_target: str | None  # None where it can be a target
    why_no_guide: str | None  # None where it can be a guide
    paper: str | None  # "target" or "guide" where the target "paper" chooses it
    swap: Swap | None  # where it is swapped


@dataclass(frozen=True)
class ResizeInfo:
    """One place where a map changes its size."""

    alias: str  # resize_{index}
    path: str  # of the module, or of the one whose forward calls F.interpolate
    call: int | None  # which of that forward's calls; None where the module itself is meant
    mode: str
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    why_no_target: str | None  # None where it can be guided
    factor: float  # from the coarse map over all enlargements in a row
    place: str  # "scores", "mixed ...", "features: ...", or "unknown: ..."; empty where nothing is enlarged
    automatic: bool  # whether the target "resize" takes it
    verdict: str  # the same with its reason
    swap: Resize | None = None  # where it is swapped


@dataclass(frozen=True)
class Inspection:
    """Every 2-D convolution of a network, what can be swapped like one, and every resizing, in the order of calls."""

    convolutions: tuple[ConvInfo, ...]
    resizes: tuple[ResizeInfo, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        convolutions = [asdict(c) | {"swap": c.swap and c.swap.to_dict()} for c in self.convolutions]
        resizes = [asdict(r) | {"swap": r.swap and r.swap.to_dict()} for r in self.resizes]
        return {"convolutions": convolutions, "resizes": resizes, "notes": list(self.notes)}

    def __str__(self) -> str:
        """A table, one line a convolution, then one a resizing, and the notes."""
        rows = [
            (
                conv.alias,
                conv.path,
                _layer_text(conv),
                _by(conv.output_size),
                f"{conv.parameters:,}",
                None if conv.multiply_adds is None else f"{conv.multiply_adds / 1e6:,.1f}",
                conv.paper,
                conv.why_no_target or "yes",
                conv.why_no_guide or "yes",
            )
            for conv in self.convolutions
        ]
        columns = (
            *("alias", "path", "convolution", "output", "parameters", "M mult-adds", f'"{PAPER}"'),
            *("can be a target", "can guide"),
        )
        tables = [render(columns, rows)]
        if self.resizes:
            enlargements = [
                (
                    *(r.alias, named(r.path, r.call), r.mode, f"{_by(r.input_size)} -> {_by(r.output_size)}"),
                    *(times(r.factor), r.place, r.verdict, r.why_no_target or "yes"),
                )
                for r in self.resizes
            ]
            heads = ("alias", "resizing", "mode", "size", "factor", "place", '"resize"', "can be a target")
            tables.append(render(heads, enlargements))
        return "\n".join([*tables, *(f"note: {note}" for note in self.notes)])


def inspect(model: nn.Module, example_inputs: Inputs | None = None) -> Inspection:
    """List every 2-D convolution: alias, size, cost, and whether it can be a target or guide.

    Other layers are listed where they can be targets: average pools, modules that call `F.conv2d` with their weight.

    Of each resizing also its factor, its place, and whether "resize" takes it and why; see `verdict`.
    Also what "paper" takes, and of a converted network the swaps, with warnings. One run, on fake tensors where the
    network takes them: nothing is computed then. The network does not change.

    Args:
        model: any `nn.Module`.
        example_inputs: a tensor or a tuple of arguments; by default one image of the network's usual size.

    Raises:
        HotswapError: where `example_inputs` were given and the network does not run on them.
    """
    names = look_up(model, example_inputs)
    state = status(model)
    notes: list[str] = []
    targets: tuple[str, ...] = ()
    guide = ""
    if state.plan is None:
        try:
            targets, guide = as_paper(names)
        except HotswapError as error:
            notes.append(str(error))
    calls = () if names.observation is None else names.observation.calls
    order = {call.path: index for index, call in reversed(list(enumerate(calls)))}
    last = max((order[path] for path in order if _why_no_target(names, path) is None), default=-1)
    swap_of = {} if state.plan is None else {swap.target: swap for swap in state.plan.swaps}
    alias_of = names.alias_of
    convolutions = []
    for path, module in model.named_modules():
        call = None if names.observation is None else names.observation.first(path)
        shape = _shape(module, None if call is None else call.input_shape)
        if shape is None:
            continue
        size = None if call is None or call.output_shape is None else call.output_shape[-2:]
        convolutions.append(
            ConvInfo(
                path=path,
                alias=alias_of.get(path),
                kind=type(module).__name__,
                **shape._asdict(),
                output_size=None if size is None else (size[0], size[1]),
                parameters=sum(p.numel() for p in module.parameters()),
                multiply_adds=None if call is None else _multiply_adds(module, shape, call),
                why_no_target=_why_no_target(names, path),
                why_no_guide=_why_no_guide(names, call, is_last=state.plan is None and order.get(path, -1) >= last),
                paper="target" if path in targets else "guide" if path == guide else None,
                swap=swap_of.get(path),
            )
        )
    convolutions.sort(key=lambda conv: order.get(conv.path, len(order) + len(calls)))
    if state.plan is not None:
        notes.append(f"{len(state.plan.entries)} are swapped; hotswap.status tells more")
        if state.plan.drift is not None:
            notes.append(f"drift when calibrated (relative RMS change of the outputs): {state.plan.drift:.3g}")
    notes += [f"warning: {text}" for text in state.warnings]
    resizes, others = _resizes(names, state.plan, example_inputs)
    return Inspection(tuple(convolutions), resizes, (*notes, *others))


class _Shape(NamedTuple):
    kernel_size: Pair
    stride: Pair
    dilation: Pair
    groups: int
    in_channels: int
    out_channels: int


def _shape(module: nn.Module, input_shape: tuple[int, ...] | None) -> _Shape | None:
    """The shape of a convolution, or of a layer that can be swapped like one; None for others."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        size, stride, dilation = ((x[0], x[1]) for x in (module.kernel_size, module.stride, module.dilation))
        return _Shape(size, stride, dilation, module.groups, module.in_channels, module.out_channels)
    if not isinstance(module, SwappedLayer) and why_not_swappable(module) is not None:
        return None
    sliding = module.sliding if isinstance(module, SwappedLayer) else sliding_of(module)
    channels = input_shape[1] if input_shape is not None else 0
    weight = own_weight(module)
    groups, outputs = (channels, channels) if weight is None else (channels // weight.shape[1], weight.shape[0])
    return _Shape(sliding.kernel_size, sliding.stride, sliding.dilation, groups, channels, outputs)


def _multiply_adds(module: nn.Module, shape: _Shape, call: Call) -> int | None:
    """Multiply-adds for one image: one window per input pixel of a transposed convolution, else per output pixel."""
    seen = call.input_shape if isinstance(module, nn.ConvTranspose2d) else call.output_shape
    if seen is None or len(seen) < 3:
        return None
    weights = (
        shape.kernel_size[0] * shape.kernel_size[1] * shape.in_channels * shape.out_channels // max(shape.groups, 1)
    )
    return weights * seen[-2] * seen[-1]


def _resizes(
    names: Names, plan: Plan | None, example_inputs: Inputs | None
) -> tuple[tuple[ResizeInfo, ...], list[str]]:
    """The enlargements, and what is said of those that cannot be targets."""
    if names.observation is None:
        return (), []
    # Once a call of F.interpolate is swapped it is no such call any more, and those after it would count anew.
    swaps = () if plan is None else plan.resizes
    sites = find(plain_copy(names.model) if swaps else names.model, example_inputs, swaps)
    swap_of = {resize.name: resize for resize in swaps}
    listed = tuple(
        ResizeInfo(
            alias=alias,
            path=site.path,
            call=site.call,
            mode=site.mode,
            input_size=site.input_size,
            output_size=site.output_size,
            why_no_target=_swapped_already(swap)
            if (swap := swap_of.get(site.name))
            else site.why_not or why_not_guided(site.mode, footprint=AUTO),
            factor=factor(site),
            place=place(site),
            automatic=swap is None and verdict(site, footprint=AUTO).taken,
            verdict=str(verdict(site, footprint=AUTO)),
            swap=swap,
        )
        for alias, site in sites.by_alias.items()
    )
    return listed, elsewhere(sites)


def _swapped_already(swap: Swap | Resize) -> str:
    measured = "" if swap.deviation is None else f", deviation {swap.deviation:.3g}"
    return f"swapped already: guide {swap.guide_name}, scale {swap.guide_scale:.3g}{measured}"


def _why_no_target(names: Names, path: str) -> str | None:
    """None where the convolution at `path` can be a target."""
    module = names.model.get_submodule(path)
    if isinstance(module, SwappedLayer):
        return _swapped_already(module.swap)
    return why_not(names, path)


def _why_no_guide(names: Names, call: Call | None, *, is_last: bool) -> str | None:
    """None where a convolution can guide some target."""
    if names.observation is None:
        return None
    if call is None:
        return "the network never calls it"
    if call.output_shape is None or len(call.output_shape) != 4:
        return "it gives no [B, C, H, W] tensor"
    return "nothing that can be a target runs after it" if is_last else None


def _by(size: tuple[int, int] | None) -> str | None:
    return None if size is None else f"{size[0]}x{size[1]}"


def _layer_text(conv: ConvInfo) -> str:
    text = f"{conv.kernel_size[0]}x{conv.kernel_size[1]}, {conv.in_channels} -> {conv.out_channels}"
    if conv.stride != (1, 1):
        text += f", stride {conv.stride[0]}"
    if conv.dilation != (1, 1):
        text += f", dilation {conv.dilation[0]}"
    if conv.groups != 1:
        text += f", groups {conv.groups}"
    return text
