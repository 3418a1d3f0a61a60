"""What a network has to offer: every convolution, and whether it can be swapped or guide."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hotswap.api import _names
from hotswap.choose import automatic
from hotswap.errors import HotswapError
from hotswap.layers import why_not_swappable
from hotswap.observe import Inputs
from hotswap.tables import render


@dataclass(frozen=True)
class ConvInfo:
    """One convolution."""

    path: str
    alias: str | None  # conv{stage}_{index}; None for 1x1 windows
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
    automatic: str | None  # "target" or "guide" where "auto" chooses it


@dataclass(frozen=True)
class Inspection:
    """Every 2-D convolution of a network, in the order in which it calls them."""

    convolutions: tuple[ConvInfo, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"convolutions": [asdict(conv) for conv in self.convolutions], "notes": list(self.notes)}

    def __str__(self) -> str:
        """A table, one line a convolution, and the notes."""
        rows = [
            (
                conv.alias,
                conv.path,
                _layer_text(conv),
                None if conv.output_size is None else f"{conv.output_size[0]}x{conv.output_size[1]}",
                f"{conv.parameters:,}",
                None if conv.multiply_adds is None else f"{conv.multiply_adds / 1e6:,.1f}",
                conv.automatic,
                conv.why_no_target or "yes",
            )
            for conv in self.convolutions
        ]
        columns = ("alias", "path", "convolution", "output", "parameters", "M mult-adds", "auto", "can be a target")
        return "\n".join([render(columns, rows), *(f"note: {note}" for note in self.notes)])


def inspect(model: nn.Module, example_inputs: Inputs | None = None) -> Inspection:
    """List every 2-D convolution: alias, size, cost, whether it can be swapped and if not why, and what "auto" takes.

    One run on fake tensors: nothing is computed, and the network does not change.

    Args:
        model: any `nn.Module`.
        example_inputs: a tensor or a tuple of arguments; by default one image of the network's usual size.

    Raises:
        HotswapError: where `example_inputs` were given and the network does not run on them.
    """
    names = _names(model, example_inputs)
    notes: list[str] = []
    try:
        targets, guide = automatic(names)
    except HotswapError as error:
        targets, guide = (), ""
        notes.append(str(error))
    calls = () if names.observation is None else names.observation.calls
    order = {call.path: index for index, call in reversed(list(enumerate(calls)))}
    alias_of = names.alias_of
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        call = None if names.observation is None else names.observation.first(path)
        called = names.observation is None or call is not None
        size = None if call is None or call.output_shape is None else call.output_shape[-2:]
        weights = module.weight.numel()
        uncalled = None if called else "the network never calls it"
        found.append(
            ConvInfo(
                path=path,
                alias=alias_of.get(path),
                kind=type(module).__name__,
                kernel_size=(module.kernel_size[0], module.kernel_size[1]),
                stride=(module.stride[0], module.stride[1]),
                dilation=(module.dilation[0], module.dilation[1]),
                groups=module.groups,
                in_channels=module.in_channels,
                out_channels=module.out_channels,
                output_size=None if size is None else (size[0], size[1]),
                parameters=weights + (0 if module.bias is None else module.bias.numel()),
                multiply_adds=None if size is None else weights * size[0] * size[1],
                why_no_target=uncalled or why_not_swappable(module),
                why_no_guide=uncalled,
                automatic="target" if path in targets else "guide" if path == guide else None,
            )
        )
    found.sort(key=lambda conv: order.get(conv.path, len(order) + len(calls)))
    return Inspection(tuple(found), tuple(notes))


def _layer_text(conv: ConvInfo) -> str:
    text = f"{conv.kernel_size[0]}x{conv.kernel_size[1]}, {conv.in_channels} -> {conv.out_channels}"
    if conv.stride != (1, 1):
        text += f", stride {conv.stride[0]}"
    if conv.dilation != (1, 1):
        text += f", dilation {conv.dilation[0]}"
    if conv.groups != 1:
        text += f", groups {conv.groups}"
    return text
