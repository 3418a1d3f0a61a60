"""Mean-field inference of a `PacCRF`.

K is made once a call. Where it is large and nothing is recorded for gradients, it is made in bands of rows, in every
step: beyond input and output there are then Q, K of a band, and one channel at a time of what is enlarged. What is
computed of a pixel does not depend on the bands.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pac_ops import library
from pac_ops.arguments import make_window
from pac_ops.binary import one_channel, two_classes
from pac_ops.crf.pairwise import PairwiseKernel
from pac_ops.functional.convolution import pacconv2d
from pac_ops.functional.kernel import packernel2d
from pac_ops.geometry import Pair, Window

MOST_HELD = 2**24  # elements of all K together that are made once a call: 64 MiB
TAPS_OF_A_BAND = 2**22  # elements of K that are held at a time where there are more


class Unary(NamedTuple):
    """Logits of at least two classes, and the size they are enlarged to; channel by channel, that saves memory."""

    logits: Tensor
    size: Pair

    @classmethod
    def of(cls, logits: Tensor, size: Pair | None = None) -> "Unary":
        """One channel becomes two classes."""
        classes = two_classes(logits) if logits.shape[1] == 1 else logits
        return cls(classes, (logits.shape[2], logits.shape[3]) if size is None else size)

    def enlarged(self, channels: slice | None = None) -> Tensor:
        """[B, C, H, W], bilinear; neighbours of -inf do not count, unless all are."""
        x = self.logits if channels is None else self.logits[:, channels]
        if (x.shape[2], x.shape[3]) == self.size:
            return x
        impossible = x == -math.inf
        if library.untraced(x) and not bool(impossible.any()):
            return F.interpolate(x, size=self.size, mode="bilinear")
        known, lost, held = (
            F.interpolate(y, size=self.size, mode="bilinear")
            for y in (x.masked_fill(impossible, 0), impossible.to(x.dtype), (~impossible).to(x.dtype))
        )
        share = held.masked_fill(held == 0, 1)
        return torch.where(lost > 0, known / share, known).masked_fill(held == 0, -math.inf)


class Step(Protocol):
    """What inference needs of a `PacCRF`, whose weights are those of one step or of all."""

    specs: list[PairwiseKernel]
    messengers: nn.ModuleList
    compat: nn.ModuleList
    pairwise_weights: nn.Module
    unary_weight: Tensor

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any module."""


def weighed(unary: Tensor, weight: Tensor) -> Tensor:
    """Unary times its weight; what is impossible stays so, and adds no nan to the weight's gradient."""
    impossible = unary == -math.inf
    return (unary.masked_fill(impossible, 0) * weight).masked_fill(impossible, -math.inf)


def pooled(x: Tensor, blur: int) -> Tensor:
    """Averages of blur x blur pixels, or of those that are inside the image."""
    if blur == 1:
        return x
    return F.avg_pool2d(x, blur, padding=_margins((x.shape[2], x.shape[3]), blur), count_include_pad=False)


def _margins(size: Pair, blur: int) -> Pair:
    """How far the first average reaches past the image: half of what the last would, were it alone to do so."""
    rows, columns = ((-n % blur + 1) // 2 for n in size)
    return rows, columns


def inferred(steps: Sequence[Step], unary: Unary, features: Sequence[Tensor], start: Tensor | None = None) -> Tensor:
    """All steps, from logQ = `start`, or the unary: -> logQ [B, C, H, W]."""
    in_bands = too_large(steps, unary, features if start is None else [*features, start])
    parts = [_Part.of(spec, feature, in_bands) for spec, feature in zip(steps[0].specs, features, strict=True)]
    logits = None if in_bands else unary.enlarged()
    log_q = _channel_by_channel(unary) if logits is None else logits
    if start is not None:
        first = two_classes(start) if start.shape[1] == 1 else start
        log_q = first.clone() if in_bands else first  # steps in bands write into it
    last, terms = None, []
    for step in steps:
        if step is not last:  # the steps of a PacCRF are one
            last, terms = step, [_Term.of(step, index, part, unary) for index, part in enumerate(parts)]
        q = F.softmax(log_q, dim=1)
        if logits is None:
            _next_in_place(log_q, q, step, terms, unary)
        else:
            log_q = weighed(logits, step.unary_weight)
            for term in terms:
                ((_, message),) = term.messages(pooled(q, term.part.blur))
                log_q = log_q - term.weight * enlarged_message(message, term.part.blur, unary.size)
        del q  # before there is the next one
    return log_q


def too_large(steps: Sequence[Step], unary: Unary, features: Sequence[Tensor]) -> bool:
    """Whether K is to be made in bands: there is much of it, and nothing is recorded for gradients or traced."""
    b, (height, width), elements = unary.logits.shape[0], unary.size, 0
    learned = (p for step in steps for p in step.parameters())
    if not library.may_split(unary.logits, *features, *learned):
        return False
    for spec, messenger in zip(steps[0].specs, steps[0].messengers, strict=True):
        if spec.compat_type != "na":
            taps = math.prod(messenger.kernel_size)  # type: ignore[arg-type]
            elements += b * -(-height // spec.blur) * -(-width // spec.blur) * taps
    return elements > MOST_HELD


def _channel_by_channel(unary: Unary) -> Tensor:
    classes = unary.logits.shape[1]
    enlarged = unary.logits.new_empty(unary.logits.shape[0], classes, *unary.size)
    for c in range(classes):
        enlarged[:, c : c + 1] = unary.enlarged(slice(c, c + 1))
    return enlarged


def _next_in_place(log_q: Tensor, q: Tensor, step: Step, terms: "Sequence[_Term]", unary: Unary) -> None:
    """One step, where no map beside these two is held whole."""
    b, classes = q.shape[:2]
    one_by_one = [slice(c, c + 1) for c in range(classes)]
    for channel in one_by_one:
        log_q[:, channel] = weighed(unary.enlarged(channel), step.unary_weight)
    for term in terms:
        blur = term.part.blur
        if blur == 1:
            for rows, message in term.messages(q):
                log_q[:, :, rows] -= term.weight * message
            continue
        small = q.new_empty(b, classes, *term.part.guide.shape[2:])
        for channel in one_by_one:
            small[:, channel] = pooled(q[:, channel], blur)
        whole = torch.empty_like(small)
        for rows, message in term.messages(small):
            whole[:, :, rows] = message
        for channel in one_by_one:
            log_q[:, channel] -= term.weight * enlarged_message(whole[:, channel], blur, unary.size)


def enlarged_message(message: Tensor, blur: int, size: Pair) -> Tensor:
    """A pooled map's message, at the size of what was pooled."""
    if blur == 1:
        return message
    (top, left), (height, width) = _margins(size, blur), size
    large = F.interpolate(message, scale_factor=float(blur), mode="bilinear")
    return large[:, :, top : top + height, left : left + width]


class _Part(NamedTuple):
    """What a pairwise term is in all steps."""

    window: Window
    blur: int
    steered: bool
    guide: Tensor  # pooled
    kernel: Tensor | None  # K of the whole image, where it is held
    high: int | None  # rows of a band; None where there is one, the whole image

    @classmethod
    def of(cls, spec: PairwiseKernel, feature: Tensor, in_bands: bool) -> "_Part":
        window = make_window(spec.kernel_size, 1, "same", spec.dilation)
        guide = pooled(feature, spec.blur)
        part = cls(window, spec.blur, spec.compat_type != "na", guide, None, None)
        if not in_bands:
            return part._replace(kernel=part.kernel_of(slice(None)))
        taps = guide.shape[0] * guide.shape[3] * math.prod(window.kernel_size)  # of a row
        return part._replace(high=max(1, TAPS_OF_A_BAND // taps))

    @property
    def padding(self) -> Pair:
        """What remains to be put around rows of a map: a band has all of its rows."""
        rows, columns = self.window.padding
        return rows if self.high is None else 0, columns

    @property
    def bands(self) -> Iterator[slice]:
        """The rows that are made at a time."""
        height = self.guide.shape[2]
        if self.high is None:
            yield slice(None)
            return
        for first in range(0, height, self.high):
            yield slice(first, min(first + self.high, height))

    def around(self, x: Tensor, rows: slice) -> Tensor:
        """What the windows of some rows see of a map, padded to `self.padding`."""
        if self.high is None:
            return x
        reach, height = self.window.padding[0], x.shape[2]
        near = slice(max(0, rows.start - reach), min(height, rows.stop + reach))
        return F.pad(x[:, :, near], (0, 0, reach - (rows.start - near.start), reach - (near.stop - rows.stop)))

    def kernel_of(self, rows: slice) -> Tensor | None:
        """K of some rows; None where the guide does not steer."""
        if self.kernel is not None or not self.steered:
            return self.kernel
        seen, window = self.around(self.guide, rows), self.window
        return packernel2d(seen, None, window.kernel_size, 1, self.padding, dilation=window.dilation)[0]


class _Term(NamedTuple):
    """A pairwise term of a step."""

    part: _Part
    filters: Tensor
    shared: bool
    compat: nn.Module
    weight: Tensor
    root: Tensor | None  # D^-1/2

    @classmethod
    def of(cls, step: Step, index: int, part: _Part, unary: Unary) -> "_Term":
        spec: PairwiseKernel = step.specs[index]
        weight: Tensor = getattr(step.pairwise_weights, str(index))
        filters: Tensor = step.messengers[index].weight  # type: ignore[assignment]
        bare = cls(part, filters, spec.shared, step.compat[index], weight, root=None)
        if not (part.steered and spec.symmetric_normalization):
            return bare
        logits = unary.logits
        wide = torch.promote_types(part.guide.dtype, torch.float32)
        ones = logits.new_ones((logits.shape[0], 1, *part.guide.shape[2:]), dtype=wide)
        sums = bare._replace(filters=filters.to(wide)).sent(ones)
        return bare._replace(root=torch.cat([inverse_root(x).to(logits.dtype) for _, x in sums], dim=2))

    def messages(self, q: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and what is sent to them."""
        for rows, message in self.sent(q):
            yield rows, self.compat(message if self.root is None else message * self.root[:, :, rows])

    def sent(self, q: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and what their windows' taps add up to."""
        sliding = (1, self.part.padding, self.part.window.dilation)
        for rows in self.part.bands:
            seen, kernel = self.part.around(q, rows), self.part.kernel_of(rows)
            if self.root is not None:
                seen = seen * self.part.around(self.root, rows)
            if kernel is None:
                yield rows, F.conv2d(seen, self.filters, None, *sliding)
            else:
                yield rows, pacconv2d(seen, kernel, self.filters, None, *sliding, shared_filters=self.shared)


def inverse_root(sums: Tensor) -> Tensor:
    """D^-1/2; 1 where no tap counts."""
    return torch.where(sums > 0, sums, 1).rsqrt()


def check_values(logits: Tensor, image: Tensor) -> None:
    """Refuse logits, of two classes or more, and an image of which no refinement can be made.

    Raises:
        ValueError: where a value is not finite, but for logits of -inf where another class is possible.
    """
    if not library.untraced(logits, image):
        return
    if not bool(image.isfinite().all()):
        raise ValueError("image must be finite, got nan or inf in it")
    highest = logits.detach().amax(dim=1)
    if not bool(highest.isfinite().all()):
        value = (
            "nan" if bool(highest.isnan().any()) else "+inf" if bool((highest > 0).any()) else "-inf of all classes"
        )
        raise ValueError(
            "logits must be finite, or -inf where a class is impossible; one must be possible at every pixel: got "
            f"{value}"
        )


def finish(log_q: Tensor, final_output: str, channels: int) -> Tensor:
    """The output asked for, of logQ; of two classes where there is one channel."""
    if final_output == "log_Q":
        return one_channel(log_q) if channels == 1 else log_q
    normalised = F.softmax(log_q, dim=1) if final_output == "softmax" else F.log_softmax(log_q, dim=1)
    return normalised[:, 1:] if channels == 1 else normalised
