"""The sliding window of a target: where the guide is read.

For a stock layer its attributes say it. A subclass of `nn.Conv2d` with a forward of its own may pad first, or slide
otherwise than its attributes say; so it is run on small inputs, up to the convolution inside it, to see what it gets.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import pac_ops
from hotswap.errors import HotswapError
from hotswap.network.dry_run import mode
from hotswap.network.preserve import untouched
from hotswap.targets.own_convolution import OwnWeight, own_weight
from pac_ops import geometry
from pac_ops.arguments import make_window, pair
from pac_ops.geometry import Pair, Window

Pads = tuple[int, int, int, int]  # left, right, top, bottom
Rule = Callable[[Window, int, int], Pads]  # of a convolution's window and its input's height and width

CONV, TRANSPOSED, POOL = "convolution", "transposed", "pool"
_NONE: Pads = (0, 0, 0, 0)
_SAME = "same"


def same_padding(window: Window, height: int, width: int) -> Pads:
    """TensorFlow's "SAME": as many outputs as inputs over the stride, the odd pixel at the bottom and the right."""
    spare = [
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, k, s, _, d in zip((height, width), *window, strict=True)
    ]
    return spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2


_RULES: dict[str, Rule] = {_SAME: same_padding}


def register_padding(kind: type[nn.Conv2d], rule: Rule) -> None:
    """Teach hotswap how a class of convolutions pads its input, where it cannot find out by itself.

    Args:
        kind: a subclass of `nn.Conv2d` that pads in its own forward.
        rule: from the window of the convolution inside it (`kernel_size`, `stride`, `padding` and `dilation`, as
            pairs) and the height and width of its input to the zeros put around that: left, right, top, bottom.
    """
    _RULES[_class_name(kind)] = rule


class Sliding(NamedTuple):
    """A sliding window and its padding. Flat, so that a graph's code can spell it."""

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    pads: Pads | str = _NONE  # put around the input first; or the name of a rule
    pad_mode: str = "constant"  # as for F.pad: zeros
    kind: str = CONV
    output_padding: Pair = (0, 0)  # of a transposed convolution
    ceil_mode: bool = False  # of a pool

    def window(self) -> Window:  # no property: torch 2.8 compiles none of a named tuple
        """The window of the layer's own operator."""
        return Window(self.kernel_size, self.stride, self.padding, self.dilation)

    def on_guide(self) -> Window:
        """The window that slides over the guide once it is padded."""
        return self.window().on_output() if self.kind == TRANSPOSED else self.window()

    def guide_size(self, height: int, width: int) -> Pair:
        """The size of the guide for an input of this size; for a transposed convolution, that of its output."""
        if self.kind == TRANSPOSED:
            return self.window().transposed_size(height, width, self.output_padding)
        return height, width

    def padded(self, x: Tensor) -> Tensor:
        """The layer's input, or a guide of `guide_size`, with all padding but the window's own zeros."""
        pads = _RULES[self.pads](self.window(), x.shape[2], x.shape[3]) if isinstance(self.pads, str) else self.pads
        if self.ceil_mode:
            rows, columns = self.window().ceil_padding(x.shape[2], x.shape[3])
            pads = (0, columns, 0, rows)
        return x if pads == _NONE else F.pad(x, pads, self.pad_mode)

    def valid_taps(self, input: Tensor) -> Tensor:
        """The taps inside the guide: bool [kh, kw, Ho, Wo]."""
        size = self.guide_size(input.shape[2], input.shape[3])
        inside = self.padded(torch.ones(1, 1, *size, device=input.device)) != 0
        return geometry.all_taps(inside, self.on_guide())[0, 0]


def sliding_of(module: nn.Module) -> Sliding:
    """The sliding window of a convolution, transposed convolution or average pool.

    Raises:
        HotswapError: where it cannot be known, with the reason, as the end of "X cannot be swapped: ...".
    """
    if isinstance(module, nn.AvgPool2d):
        window = make_window(module.kernel_size, module.stride, module.padding, 1)
        return Sliding(*window, kind=POOL, ceil_mode=module.ceil_mode)
    if isinstance(module, nn.ConvTranspose2d):
        window = _stated_window(module)
        extra = pair("output_padding", module.output_padding, 0)  # type: ignore[arg-type] # a longer tuple in torch
        return Sliding(*window, kind=TRANSPOSED, output_padding=extra)
    if not isinstance(module, nn.Conv2d) or has_own_forward(type(module)):
        return _probed(module)
    window = _stated_window(module)
    if module.padding_mode == "zeros" or window.padding == (0, 0):
        return Sliding(*window)
    rows, columns = window.padding
    bare = window._replace(padding=(0, 0))
    return Sliding(*bare, (columns, columns, rows, rows), module.padding_mode)


def _stated_window(conv: nn.Conv2d | nn.ConvTranspose2d) -> Window:
    return make_window(conv.kernel_size, conv.stride, conv.padding, conv.dilation)  # type: ignore[arg-type]


def has_own_forward(kind: type[nn.Module]) -> bool:
    """Whether a class of convolutions computes otherwise than `nn.Conv2d` does."""
    plain: Any = nn.Conv2d
    return any(getattr(kind, name) is not getattr(plain, name) for name in ("forward", "_conv_forward"))


# --- a forward of its own -------------------------------------------------------------------------------


class _Conv2d(NamedTuple):
    """The arguments of `F.conv2d`."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    def window(self) -> Window:
        """The sliding window of the call."""
        kernel_size = (self.weight.shape[2], self.weight.shape[3])
        return make_window(kernel_size, self.stride, self.padding, self.dilation)


class _Seen(NamedTuple):
    window: Window
    steps: tuple[tuple[Pads, str], ...]  # what F.pad was asked for on the way
    added: Pair  # rows and columns that the convolution's input has more than the layer's


class _Reached(Exception):  # noqa: N818 (no error: it ends a run that has shown what it should)
    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen


class _Watch(TorchFunctionMode):
    """Follows how the input of a forward is padded, up to the convolution with the module's own weight."""

    def __init__(self, module: nn.Module, size: Pair) -> None:
        super().__init__()
        self.size, self.weight = size, OwnWeight(module)
        self.padded: list[tuple[Tensor, tuple[tuple[Pads, str], ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and (call := _Conv2d(*args, **kwargs)).weight in self.weight:
            return self.convolve(call)
        result = func(*args, **kwargs)
        if func is F.pad:
            self._pad(result, *args, **kwargs)
        self.weight.follow(func, args, kwargs, result)
        return result

    def convolve(self, call: _Conv2d) -> Tensor:
        """The convolution with the module's own weight."""
        raise NotImplementedError

    def seen(self, call: _Conv2d) -> _Seen:
        """The window of a call, and the padding of its input."""
        added = (call.input.shape[2] - self.size[0], call.input.shape[3] - self.size[1])
        return _Seen(call.window(), self._steps(call.input), added)

    def _steps(self, x: Tensor) -> tuple[tuple[Pads, str], ...]:
        return next((steps for padded, steps in self.padded if padded is x), ())

    def _pad(
        self, output: Tensor, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
    ) -> None:
        left, right, top, bottom = (*pad, 0, 0)[:4]
        self.padded.append((output, (*self._steps(input), ((left, right, top, bottom), mode))))


class _Probe(_Watch):
    """Stops at the convolution."""

    def convolve(self, call: _Conv2d) -> Tensor:
        raise _Reached(self.seen(call))


class _Steer(_Watch):
    """Makes the convolution pixel-adaptive."""

    def __init__(
        self,
        module: nn.Module,
        input: Tensor,
        kernel: Tensor,
        sliding: Sliding,
        gate: Tensor | None,
        done: list[bool],
    ) -> None:
        super().__init__(module, (input.shape[2], input.shape[3]))
        self.kernel, self.sliding, self.gate, self.done = kernel, sliding, gate, done

    def convolve(self, call: _Conv2d) -> Tensor:
        self.done.append(True)
        window, input, seen = self.sliding.window(), call.input, self.seen(call)
        if seen.window != window:
            raise HotswapError(
                f"a swapped layer slides its convolution otherwise here ({_shown(seen.window)}) than when it was "
                f"looked at ({_shown(window)}); hotswap.revert it, or split it into a layer for each"
            )
        if not _padded_as(self.sliding, seen) or window.output_size(input.shape[2], input.shape[3]) != tuple(
            self.kernel.shape[4:]
        ):
            raise HotswapError(
                "a swapped convolution pads its input otherwise than it did when it was looked at; say how with "
                "hotswap.register_padding"
            )
        sliding = (window.stride, window.padding, window.dilation)
        return pac_ops.pacconv2d(input, self.kernel, call.weight, call.bias, *sliding, call.groups, gate=self.gate)


def _padded_as(sliding: Sliding, seen: _Seen) -> bool:
    """Whether the input was padded as in the dry run; padding by a rule is not checked again."""
    if isinstance(sliding.pads, str):
        return True
    left, right, top, bottom = sliding.pads
    if torch.compiler.is_dynamo_compiling():  # which shows modes no F.pad
        return seen.added == (top + bottom, left + right)
    return _total(seen) == sliding.pads and all(mode == sliding.pad_mode for _, mode in seen.steps)


def _shown(window: Window) -> str:
    return ", ".join(f"{name} {value}" for name, value in window._asdict().items())


def steered_forward(
    forward: Callable[[Tensor], Tensor],
    module: nn.Module,
    input: Tensor,
    kernel: Tensor,
    sliding: Sliding,
    gate: Tensor | None = None,
) -> Tensor:
    """Run the forward of a module's plain class, with K in the convolution that has the module's own weight.

    Args:
        forward: of the plain class.
        module: whose it is.
        input: what it takes.
        kernel: K.
        sliding: how the convolution slides.
        gate: a of 1 + a (K - 1), which then takes K's place.

    Raises:
        HotswapError: where the convolution inside is not the one that was seen when it was converted.
    """
    done: list[bool] = []
    with _Steer(module, input, kernel, sliding, gate, done):
        output = forward(input)
    if len(done) != 1:
        raise HotswapError(
            f"a swapped layer calls its convolution {len(done)} times in its forward, and must do so once: with its "
            "own weight, or one that PyTorch functions make of that there"
        )
    return output


def _probed(module: nn.Module) -> Sliding:
    name = type(module).__name__
    sizes = _sizes(_run_up_to_convolution(module, *_LARGE).window)
    seen = [_run_up_to_convolution(module, *size) for size in sizes]
    windows, modes = {one.window for one in seen}, {mode for one in seen for _, mode in one.steps}
    pads = [_total(one) for one in seen]
    registered = [known for kind in type(module).__mro__ if (known := _class_name(kind)) in _RULES]
    if len(windows) == 1:
        (window,) = windows
        if registered:
            return Sliding(*window, registered[0])
        if None not in pads and modes <= {"constant"}:
            if len(set(pads)) == 1:
                return Sliding(*window, pads[0] or _NONE)
            if pads == [same_padding(window, *size) for size in sizes]:
                return Sliding(*window, _SAME)
        elif len(set(pads)) == len(modes) == 1 and pads[0] is not None and all(len(one.steps) == 1 for one in seen):
            return Sliding(*window, pads[0], modes.pop())
    raise HotswapError(
        f"{name} pads its input in a way of its own; say how with hotswap.register_padding({name}, rule), where "
        "rule(window, height, width) gives the zeros it puts (left, right, top, bottom)"
    )


_LARGE = (67, 71)  # an input that every window fits into


def _sizes(window: Window) -> list[Pair]:
    """Input sizes that tell paddings apart: every remainder modulo the stride."""
    reach = [d * (k - 1) + 1 for k, d in zip(window.kernel_size, window.dilation, strict=True)]
    return [(reach[0] + 2 + n, reach[1] + 5 + n) for n in range(max(*window.stride, 2) + 1)]


def _run_up_to_convolution(module: nn.Module, height: int, width: int) -> _Seen:
    name, weight = type(module).__name__, own_weight(module)
    assert weight is not None  # noqa: S101 (for the type checker)
    channels = getattr(module, "in_channels", weight.shape[1] * getattr(module, "groups", 1))
    x = torch.zeros(1, channels, height, width, device=weight.device, dtype=weight.dtype)
    try:
        with untouched([module]), mode(module, training=False), torch.no_grad(), _Probe(module, (height, width)):
            type(module).forward(module, x)
    except _Reached as reached:
        return reached.seen
    except Exception as error:  # whatever a user's forward raises
        raise HotswapError(f"{name} does not run on an input alone ({type(error).__name__}: {error})") from error
    raise HotswapError(f"{name} computes no convolution of its weight with torch.nn.functional.conv2d")


def _total(seen: _Seen) -> Pads | None:
    """The total padding; None where it does not explain the size that the convolution got."""
    left, right, top, bottom = (sum(pads[side] for pads, _ in seen.steps) for side in range(4))
    return (left, right, top, bottom) if (top + bottom, left + right) == seen.added else None


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
