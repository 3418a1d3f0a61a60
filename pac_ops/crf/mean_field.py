"""Mean-field inference of a `PacCRF`.

K is made once a call. Where it is large and nothing is recorded for gradients, it is made in bands of rows, in every
step: beyond input and output there are then Q, K of a band, and one channel at a time of what is enlarged. What is
computed of a pixel does not depend on the bands.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pac_ops import library
from pac_ops.arguments import make_window
from pac_ops.binary import one_channel, two_classes
from pac_ops.crf.pairwise import PairwiseKernel
from pac_ops.functional.convolution import pacconv2d
from pac_ops.functional.kernel import packernel2d
from pac_ops.geometry import Pair

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
    """Averages of blur x blur pixels; those past the border are 0 and send nothing."""
    if blur == 1:
        return x
    return F.avg_pool2d(F.pad(x, (0, -x.shape[3] % blur, 0, -x.shape[2] % blur)), blur)


def pooled_guide(feature: Tensor, blur: int) -> Tensor:
    """Averages over the pixels there are; those past the border do not count."""
    return F.avg_pool2d(feature, blur, ceil_mode=True) if blur > 1 else feature


def inferred(steps: Sequence[Step], unary: Unary, features: Sequence[Tensor]) -> Tensor:
    """All steps: -> logQ [B, C, H, W]."""
    if too_large(steps, unary, features):
        return in_bands(steps, unary, features)
    logits = unary.enlarged()
    kernels = _adapting_kernels(steps[0], features)
    log_q, last, scales = logits, None, []
    for step in steps:
        if step is not last:
            last, scales = step, _scales(step, logits, kernels)
        log_q = _next_log_q(step, logits, log_q, kernels, scales)
    return log_q


def _adapting_kernels(step: Step, features: Sequence[Tensor]) -> list[Tensor | None]:
    """K of every pairwise kernel, None for `na`; they serve all steps."""
    kernels: list[Tensor | None] = []
    for spec, feature in zip(step.specs, features, strict=True):
        if spec.compat_type == "na":
            kernels.append(None)
            continue
        window, guide = make_window(spec.kernel_size, 1, "same", spec.dilation), pooled_guide(feature, spec.blur)
        kernels.append(packernel2d(guide, None, window.kernel_size, 1, window.padding, dilation=window.dilation)[0])
    return kernels


def _scales(step: Step, unary: Tensor, kernels: Sequence[Tensor | None]) -> list[Tensor | None]:
    """D^-1/2 of every pairwise kernel that normalises symmetrically; it serves all steps of one set of weights.

    A pooled pixel counts as the share of it that is inside the image, as it does in the pooled Q.
    """
    scales: list[Tensor | None] = []
    for spec, messenger, kernel in zip(step.specs, step.messengers, kernels, strict=True):
        if kernel is None or not spec.symmetric_normalization:
            scales.append(None)
            continue
        inside = pooled(unary.new_ones((1, 1, *unary.shape[2:]), dtype=kernel.dtype), spec.blur)
        inside = inside.expand(unary.shape[0], -1, -1, -1)
        sliding: Any = (1, messenger.padding, messenger.dilation)
        weight: Tensor = messenger.weight  # type: ignore[assignment]
        sums = pacconv2d(inside, kernel, weight.to(kernel.dtype), None, *sliding)
        scales.append(inverse_root(sums).to(unary.dtype))
    return scales


def _next_log_q(
    step: Step, unary: Tensor, log_q: Tensor, kernels: Sequence[Tensor | None], scales: Sequence[Tensor | None]
) -> Tensor:
    """One mean-field step: [B, C, H, W] -> [B, C, H, W], of the two classes of a binary logit."""
    q = F.softmax(log_q, dim=1)
    result = weighed(unary, step.unary_weight)
    for index, (kernel, scale) in enumerate(zip(kernels, scales, strict=True)):
        weight: Tensor = getattr(step.pairwise_weights, str(index))
        result = result - weight * _message(step, index, q, kernel, scale)
    return result


def _message(step: Step, index: int, q: Tensor, kernel: Tensor | None, scale: Tensor | None) -> Tensor:
    spec, messenger, compat = step.specs[index], step.messengers[index], step.compat[index]
    height, width = q.shape[2:]
    q = pooled(q, spec.blur)
    if scale is not None:
        q = q * scale
    message: Tensor = messenger(q) if kernel is None else messenger(q, None, kernel)
    if scale is not None:
        message = message * scale
    message = compat(message)
    return enlarged_message(message, spec.blur, (height, width))


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


def in_bands(steps: Sequence[Step], unary: Unary, features: Sequence[Tensor]) -> Tensor:
    """All steps: -> logQ [B, C, H, W]."""
    b, classes = unary.logits.shape[:2]
    guides = [pooled_guide(f, spec.blur) for spec, f in zip(steps[0].specs, features, strict=True)]
    one_by_one = [slice(c, c + 1) for c in range(classes)]
    log_q = unary.logits.new_empty(b, classes, *unary.size)
    for channel in one_by_one:
        log_q[:, channel] = unary.enlarged(channel)
    last, terms = None, []
    for step in steps:
        if step is not last:  # the steps of a PacCRF are one
            last, terms = step, [_Term.of(step, index, guide, unary) for index, guide in enumerate(guides)]
        q = F.softmax(log_q, dim=1)
        for channel in one_by_one:
            log_q[:, channel] = weighed(unary.enlarged(channel), step.unary_weight)
        for term in terms:
            if term.blur == 1:
                for rows, message in term.messages(q):
                    log_q[:, :, rows] -= term.weight * message
                continue
            small = q.new_empty(b, classes, *term.guide.shape[2:])
            for channel in one_by_one:
                small[:, channel] = pooled(q[:, channel], term.blur)
            whole = torch.empty_like(small)
            for rows, message in term.messages(small):
                whole[:, :, rows] = message
            for channel in one_by_one:
                log_q[:, channel] -= term.weight * enlarged_message(whole[:, channel], term.blur, unary.size)
        del q  # before there is the next one
    return log_q


def enlarged_message(message: Tensor, blur: int, size: Pair) -> Tensor:
    """A pooled map's message, at the size of what was pooled."""
    if blur == 1:
        return message
    return F.interpolate(message, scale_factor=float(blur), mode="bilinear")[:, :, : size[0], : size[1]]


class _Term(NamedTuple):
    """A pairwise term of a step."""

    messenger: Any  # a PacConv2d, or a Conv2d
    shared: bool
    steered: bool
    compat: nn.Module
    weight: Tensor
    blur: int
    guide: Tensor  # pooled
    root: Tensor | None  # D^-1/2

    @classmethod
    def of(cls, step: Step, index: int, guide: Tensor, unary: Unary) -> "_Term":
        spec: PairwiseKernel = step.specs[index]
        weight: Tensor = getattr(step.pairwise_weights, str(index))
        steered = spec.compat_type != "na"
        parts = (step.messengers[index], spec.shared, steered, step.compat[index], weight, spec.blur, guide)
        bare = cls(*parts, root=None)
        if not (steered and spec.symmetric_normalization):
            return bare
        logits = unary.logits
        wide = torch.promote_types(guide.dtype, torch.float32)
        inside = pooled(logits.new_ones(1, 1, *unary.size, dtype=wide), spec.blur).expand(logits.shape[0], -1, -1, -1)
        root = logits.new_empty(logits.shape[0], 1, *guide.shape[2:])
        filters = bare.messenger.weight.to(wide)
        for rows, seen, kernel in bare.bands(inside):
            sums = bare.sent(seen, kernel, filters)
            root[:, :, rows] = inverse_root(sums).to(root.dtype)
        return cls(*parts, root=root)

    def messages(self, q: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and what is sent to them."""
        for rows, seen, kernel in self.bands(q, self.root):
            message = self.sent(seen, kernel, self.messenger.weight)
            if self.root is not None:
                message = message * self.root[:, :, rows]
            yield rows, self.compat(message)

    def sent(self, seen: Tensor, kernel: Tensor | None, weight: Tensor) -> Tensor:
        sliding = (1, (0, self.messenger.padding[1]), self.messenger.dilation)
        if kernel is None:
            return F.conv2d(seen, weight, None, *sliding)
        return pacconv2d(seen, kernel, weight, None, *sliding, shared_filters=self.shared)

    def bands(self, q: Tensor, factor: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Rows, what their windows see of q, and K."""
        b, _, height, width = q.shape
        kernel_size, (reach, beside) = self.messenger.kernel_size, self.messenger.padding
        high = max(1, TAPS_OF_A_BAND // (b * width * math.prod(kernel_size)))
        for first in range(0, height, high):
            rows = slice(first, min(first + high, height))
            near = slice(max(0, rows.start - reach), min(height, rows.stop + reach))
            past = (0, 0, reach - (rows.start - near.start), reach - (near.stop - rows.stop))
            seen = q[:, :, near] if factor is None else q[:, :, near] * factor[:, :, near]
            kernel = None
            if self.steered:
                around = F.pad(self.guide[:, :, near], past)
                kernel = packernel2d(around, None, kernel_size, 1, (0, beside), dilation=self.messenger.dilation)[0]
            yield rows, F.pad(seen, past), kernel


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
