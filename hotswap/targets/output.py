"""Refinement of a network's scores along the image, behind it: pixel-adaptive layers, a PAC-CRF, or guided steps.

With scores x, out = x + a (refined(x) - x), one a for each class. What has to be trained starts with all a at 0: the
outputs are then those of the network, to the last bit, and a has a gradient from the first step. Guided steps are not
to be trained, and start at 1. Scores that are not finite stay as they are; to their neighbours they count as the
least finite score of their image, as a network writes -inf for what cannot be. Exported files know -inf alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pac_ops
from hotswap.choices import FOOTPRINTS
from hotswap.errors import HotswapError
from hotswap.targets import json_values, kernels
from hotswap.targets.forward_ops import describe, distance_of
from hotswap.targets.guide_spaces import GuideSpace
from hotswap.targets.guided_layer import OUTPUT_LAYER
from hotswap.targets.window import Sliding
from pac_ops import PacCRF
from pac_ops.area import fitted2d
from pac_ops.dtypes import accumulate_dtype
from pac_ops.library import untraced
from pac_ops.subclasses import as_plain

NAME = OUTPUT_LAYER
PAC, CRF, GUIDED = "pac", "crf", "guided"
OUTPUT, OUTPUT_CRF, GUIDED_OUTPUT = "output", "output_crf", "output_guided"
TARGETS = {OUTPUT: PAC, OUTPUT_CRF: CRF, GUIDED_OUTPUT: GUIDED}  # what people write, and the kind that it is
SCORES = "the scores"
_LARGEST = 64  # of a window, and of the guide's channels


@dataclass(frozen=True)
class Output:
    """The refinement of a network's scores.

    "pac" is one normalised pixel-adaptive layer for each of `windows`: every class is averaged with a filter that
    all classes share, times K. The guide is the image in `space`, times `guide_scale`, and what a branch of two
    3x3 convolutions adds to it, which adds nothing at first. "crf" is `PacCRF`, with a kernel for each of
    `dilations`, guided by the image in `space` over a learned scale each; the paper's has dilations 16 and 64,
    and 5 steps. "guided" halves the scores `halvings` times, and takes them back by steps that the image guides,
    each of which puts back what a halving lost (see `pac_ops.pacresize2d`). It is for networks whose last layers
    are learned, and have no interpolation that could be guided. Nothing is to be trained: a is 1.
    """

    kind: str = PAC
    where: str = ""  # of the scores in the output, as code has it: "", "['out']", ".logits"
    channels: int = 0  # classes; 0 until the network at hand was looked at
    space: GuideSpace | None = None
    guide_scale: float = 0.0
    windows: tuple[int, ...] = (5, 7)
    guide_channels: int = 16
    dilations: tuple[int, ...] = (4, 16)
    steps: int = 2
    halvings: int = 3
    gate: tuple[float, ...] = ()  # a, by class; empty for what it starts from

    def __post_init__(self) -> None:
        """Check the values a user or a file can get wrong."""
        if self.kind not in TARGETS.values():
            kinds = ", ".join(TARGETS.values())
            raise HotswapError(f"the kind of an output's refinement must be one of {kinds}, got {self.kind!r}")
        if not self.windows or any(k not in range(3, _LARGEST, 2) for k in self.windows):
            raise HotswapError(f"windows must be odd numbers from 3 on, got {self.windows!r}")
        if not self.dilations or min(self.dilations) < 1 or self.steps < 1 or self.channels < 0:
            raise HotswapError(f"dilations, steps and channels must be positive, got {self!r}")
        if self.halvings not in range(1, len(FOOTPRINTS) + 1):
            raise HotswapError(f"halvings must be between 1 and {len(FOOTPRINTS)}, got {self.halvings!r}")
        if not 3 <= self.guide_channels <= _LARGEST:
            raise HotswapError(f"guide_channels must be between 3 and {_LARGEST}, got {self.guide_channels!r}")
        if not (math.isfinite(self.guide_scale) and self.guide_scale >= 0):
            raise HotswapError(f"guide_scale must be a number >= 0, got {self.guide_scale!r}")
        if self.gate and (len(self.gate) != self.channels or not all(map(math.isfinite, self.gate))):
            raise HotswapError(f"the gate must hold a finite number for each of {self.channels} classes")

    @property
    def name(self) -> str:
        """The target in a few words."""
        return f"output{self.where}"

    @property
    def alias(self) -> str:
        """What people write for a refinement of its kind."""
        return next(name for name, kind in TARGETS.items() if kind == self.kind)

    @property
    def first_gate(self) -> float:
        """What each a starts from."""
        return 1.0 if self.kind == GUIDED else 0.0

    @property
    def closed(self) -> bool:
        """Whether no refinement is let through."""
        return not any(self.gate)

    @property
    def added(self) -> int:
        """Parameters that it adds to the network."""
        with torch.device("meta"):
            return sum(p.numel() for p in layer_of(self, torch.device("meta")).parameters())

    def __str__(self) -> str:
        """What it is, in a line."""
        windows = ", ".join(f"{k}x{k}" for k in self.windows)
        dilations = ", ".join(map(str, self.dilations))
        kind = {
            PAC: f"pixel-adaptive layers of {windows}",
            CRF: f"a PAC-CRF, 5x5 with dilations {dilations}",
            GUIDED: f"guided steps behind {self.halvings} halvings",
        }[self.kind]
        a = sum(map(abs, self.gate)) / max(1, len(self.gate))
        return f"{self.name}, {self.channels} classes: refined by {kind}, guided by {self.space}; mean |a| {a:.3g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}
        return values | {"space": None if self.space is None else self.space.to_dict()}

    @classmethod
    def from_dict(cls, data: Any) -> "Output":
        """Read what `to_dict` writes.

        Raises:
            HotswapError: where it is anything else.
        """
        where = "the refinement of the plan"
        if isinstance(data, dict):
            data = {"halvings": cls.halvings} | data  # which older files do not have
        values = {name: json_values.member(data, name, kind, where) for name, kind in _TYPES.items()}
        if unknown := sorted(set(data) - set(values)):
            raise HotswapError(
                f"{where} must hold only {', '.join(values)}, got also {', '.join(map(repr, unknown))}"
            )
        for name, kinds in (("windows", int), ("dilations", int), ("gate", (int, float))):
            values[name] = json_values.items(values[name], kinds, f"{where}: {name}", "numbers")
        if values["space"] is not None:
            values["space"] = json_values.space(values["space"], where)
        return cls(**values)


def is_output(target: Any) -> bool:
    """Whether a target is the output of the network."""
    return isinstance(target, Output) or (isinstance(target, str) and target in TARGETS)


_TYPES: Mapping[str, Any] = {
    "kind": str,
    "where": str,
    "channels": int,
    "space": (dict, type(None)),
    "guide_scale": (int, float),
    "windows": list,
    "guide_channels": int,
    "dilations": list,
    "steps": int,
    "halvings": int,
    "gate": list,
}


class Refined(nn.Module):
    """The layer: called with scores [B, C, H, W] and the network's image [B, 3, h, w] -> [B, C, H, W].

    An nn.Sequential calls all that it holds, one by one: called with one argument, the layer returns that.
    """

    def __init__(self, entry: Output) -> None:
        super().__init__()
        self._entry = entry
        given = entry.gate or (entry.first_gate,) * entry.channels
        self.gate = nn.Parameter(torch.tensor(given).view(-1, 1, 1))

    @property
    def entry_where(self) -> str:
        """Where the scores are in the network's output."""
        return self._entry.where

    @property
    def entry(self) -> Output:
        """The entry of the plan, with the gate as it is now."""
        return replace(self._entry, gate=tuple(self.gate.flatten().tolist()))

    def neutralise(self) -> None:
        """Close it, in a copy that shares parameters and is compared with the plain network."""
        self.gate = nn.Parameter(torch.zeros_like(self.gate), requires_grad=False)

    def forward(self, scores: Any, *images: Any) -> Any:
        """Refine the scores.

        Raises:
            HotswapError: where scores or image do not fit.
        """
        return self._gated(scores, *images) if images else scores

    def _gated(self, scores: Tensor, image: Any) -> Tensor:
        entry = self._entry
        if scores.dim() != 4 or scores.shape[1] != entry.channels:
            raise HotswapError(f"{SCORES} must be [B, {entry.channels}, H, W], got {describe(scores)}")
        if not isinstance(image, Tensor) or image.dim() != 4 or image.shape[0] != scores.shape[0]:
            raise HotswapError(
                f"the image that guides {SCORES} must be [{scores.shape[0]}, 3, h, w], got {describe(image)}"
            )
        plain = as_plain(scores)
        guide = self._guide(plain, image)
        known, finite = _known(plain)
        refined = self.refined(known, guide.to(accumulate_dtype(plain.dtype)))
        changed = refined.to(plain.dtype) - known
        changed = changed if finite is None else changed * finite
        return scores + self.gate.to(plain.dtype) * changed

    def _guide(self, scores: Tensor, image: Tensor) -> Tensor:
        """The image in its space at the size of the scores, before it is scaled."""
        fitted = fitted2d(as_plain(image), (scores.shape[2], scores.shape[3]))
        return fitted if self._entry.space is None else self._entry.space(fitted)

    def refined(self, scores: Tensor, guide: Tensor) -> Tensor:
        """The refined scores, before the gate."""
        raise NotImplementedError

    # --- its scale, to be calibrated ---

    @property
    def guide_scale(self) -> float:
        """What the image is multiplied by; a CRF learns one for each of its kernels from there."""
        return self._entry.guide_scale

    def rescale(self, scale: float) -> None:
        """Have the image multiplied by another number."""
        self._entry = replace(self._entry, guide_scale=scale)

    def windows(self) -> Sequence[Sliding]:
        """The window of each of its kernels."""
        return [Sliding((k, k), padding=(k // 2, k // 2)) for k in self._entry.windows]

    def measured(self, scores: Tensor, image: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each window: ||f_i - f_j||^2 of the unscaled image, [B, 1, 1, 1, taps, pixels], and which of them count.

        They are those off-centre and inside the image. What a branch adds to the guide is left out.
        """
        guide = self._guide(as_plain(scores), image)
        for window in self.windows():
            counts = window.valid_taps(guide)
            counts[window.kernel_size[0] // 2, window.kernel_size[1] // 2] = False
            distance = distance_of(guide, window, asymmetric=False).detach()
            yield distance.flatten(4).flatten(2, 3)[:, :, None, None], counts.flatten(2).flatten(0, 1)[None, None]

    def deviation(self, distance: Tensor) -> Tensor:
        """1 - K for such distances, in float64."""
        return kernels.deviation(distance.double() * self.guide_scale**2, kernels.parse(kernels.DEFAULT_KERNEL))


class PacRefined(Refined):
    """Normalised pixel-adaptive layers with a guide branch."""

    def __init__(self, entry: Output) -> None:
        super().__init__(entry)
        n, inputs = entry.guide_channels, 3 if entry.space is None else len(entry.space.mean)
        self.first, self.last = nn.Conv2d(inputs, n, 3, padding=1), nn.Conv2d(n, n, 3, padding=1)
        generator = torch.Generator().manual_seed(0)  # every run starts alike
        with torch.no_grad():
            bound = 1 / math.sqrt(9 * inputs)
            self.first.weight.uniform_(-bound, bound, generator=generator)
            for x in (self.first.bias, self.last.weight, self.last.bias):
                assert x is not None  # noqa: S101 (for the type checker)
                x.zero_()
        self.filters = nn.ParameterList(torch.ones(1, 1, k, k) for k in entry.windows)

    def refined(self, scores: Tensor, guide: Tensor) -> Tensor:
        """See the base class."""
        with torch.autocast(guide.device.type, enabled=False):
            wide = guide.to(torch.promote_types(guide.dtype, self.first.weight.dtype))
            image = F.pad(wide, (0, 0, 0, 0, 0, self.last.out_channels - wide.shape[1]))
            features = self._entry.guide_scale * image + _convolved(self.last, _convolved(self.first, wide).relu())
        for window, weight in zip(self._entry.windows, self.filters, strict=True):
            kernel, _ = pac_ops.packernel2d(features, None, window, padding=window // 2, normalize_kernel=True)
            scores = pac_ops.pacconv2d(
                scores, kernel, weight.to(scores.dtype), padding=window // 2, shared_filters=True
            )
        return scores


class CrfRefined(Refined):
    """A PAC-CRF of full class-to-class weights."""

    def __init__(self, entry: Output) -> None:
        super().__init__(entry)
        kernels = [{"kernel_size": 5, "dilation": dilation} for dilation in entry.dilations]
        self.crf = PacCRF(entry.channels, entry.steps, perturbed_init=False, pairwise_kernels=kernels)
        self.scales = nn.Parameter(torch.full((len(kernels),), entry.guide_scale))

    def rescale(self, scale: float) -> None:
        """See the base class."""
        super().rescale(scale)
        nn.init.constant_(self.scales, scale)

    def windows(self) -> Sequence[Sliding]:
        """See the base class."""
        return [Sliding((5, 5), padding=(2 * d, 2 * d), dilation=(d, d)) for d in self._entry.dilations]

    def refined(self, scores: Tensor, guide: Tensor) -> Tensor:
        """See the base class."""
        out: Tensor = self.crf(scores, [guide * scale for scale in self.scales.to(guide.dtype)])
        return out


class GuidedRefined(Refined):
    """Guided steps back from a halved map."""

    def windows(self) -> Sequence[Sliding]:
        """See the base class: a pixel and those that lie beside it in the coarsest map."""
        d = 2**self._entry.halvings
        return [Sliding((3, 3), padding=(d, d), dilation=(d, d))]

    def refined(self, scores: Tensor, guide: Tensor) -> Tensor:
        """See the base class."""
        n, scale = self._entry.halvings, self._entry.guide_scale
        steps = (*reversed(FOOTPRINTS[:n]), FOOTPRINTS[0])  # each reaches a pixel further than the one after it
        return pac_ops.pacresize2d(scores, guide, scale=scale, footprint=steps, halvings=n, residual=True)


def _known(scores: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scores, the least finite one of an image for each that is not, and which are; None where all of them are."""
    if torch.compiler.is_exporting():
        return _exported_known(scores)
    if scores.device.type == "cpu" and untraced(scores) and bool(scores.sum().isfinite()):
        return scores, None  # twice as fast; on a GPU it would be waited for
    finite = scores.isfinite()
    least = scores.masked_fill(~finite, 0).amin((1, 2, 3), keepdim=True)
    return torch.where(finite, scores, least), finite


def _exported_known(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The same for scores that are finite or -inf, without booleans, which not every runtime has: 1 and 0."""
    large = torch.finfo(scores.dtype).max / 4
    finite = (scores + large).clamp(0, 1)
    known = scores.clamp_min(-large) * finite
    least = known.flatten(1).amin(1).view(-1, 1, 1, 1)
    return known + least * (1 - finite), finite


def _convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.conv2d(x, layer.weight.to(x.dtype), bias, padding=layer.padding)


def layer_of(entry: Output, device: torch.device) -> Refined:
    """The layer of an entry."""
    return {PAC: PacRefined, CRF: CrfRefined, GUIDED: GuidedRefined}[entry.kind](entry).to(device)
