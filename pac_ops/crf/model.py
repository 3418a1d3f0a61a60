"""Conditional random fields whose messages are pixel-adaptive convolutions (Su et al., CVPR 2019, section 4.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pac_ops.arguments import IntOrPair, check_devices, check_image, make_window, pair
from pac_ops.crf import mean_field
from pac_ops.crf.features import DenseFeatures
from pac_ops.crf.mean_field import Unary
from pac_ops.crf.pairwise import PairwiseKernel, starting_weight
from pac_ops.layers.adapting import hold
from pac_ops.layers.convolution import PacConv2d
from pac_ops.published import NATIVE_IMPL, answers

Features = Tensor | Sequence[Tensor | None]
FINAL_OUTPUTS = ("log_Q", "softmax", "log_softmax")


class PacCRF(nn.Module):
    """Mean-field inference in a CRF with pixel-adaptive messages (Su et al., CVPR 2019, section 4.2).

    Each of `num_steps` steps is, with the sum over the pairwise kernels,

        logQ <- unary * unary_weight - sum_i w_i * up(compat_i(PAC_i(down(softmax(logQ)))))

    from logQ = unary; all steps share their weights (`PacCRFLoose` gives each its own). Kernels are added with
    `add_pairwise_kernel`, or given as dictionaries of its arguments.

    Called as `crf(unary, features)`: unary log-probabilities or logits [B, C, H, W], and one guide [B, G_i, H, W] a
    kernel (None for one of `na`), or a single guide for all -> [B, C, H, W]. The steps begin with `logQ=` where it is
    given, in the unary's place. K is made once a call; where it is large and nothing is recorded for gradients, it is
    made in bands of rows once a step, and never held whole.

    A logit of -inf says that a class is impossible there; so does the output. At every pixel a class must be
    possible: where none is, and where a logit is nan, the result is nan, and its neighbours' with the next step.

    With one channel, unary is a binary logit, of a class against another whose logits are 0: everything is computed
    for two classes, weights included, and one channel comes back: the difference of their logQ, or of "softmax" and
    "log_softmax" the second class's.

    Args:
        channels: the number of classes, C; 1 for a binary logit.
        num_steps: mean-field steps, at least 1.
        final_output: "log_Q" (not normalised), "softmax" or "log_softmax".
        perturbed_init: add uniform noise of +-0.0005 to `4d` and `na` weights: classes are then not alike at first.
        fixed_weighting: the unary and pairwise weights are not learned.
        unary_weight: where it starts.
        pairwise_kernels: kernels to begin with.
    """

    unary_weight: Tensor

    @answers(native_impl=NATIVE_IMPL)
    def __init__(
        self,
        channels: int,
        num_steps: int = 5,
        final_output: str = "log_Q",
        perturbed_init: bool = True,
        fixed_weighting: bool = False,
        unary_weight: float = 1.0,
        pairwise_kernels: "Sequence[Mapping[str, Any] | PairwiseKernel]" = (),
    ) -> None:
        super().__init__()
        _check_numbers(channels=channels, num_steps=num_steps)
        _check_final_output(final_output)
        self.channels, self.num_steps, self.final_output = channels, num_steps, final_output
        self.classes = max(2, channels)
        self.perturbed_init, self.fixed_weighting = perturbed_init, fixed_weighting
        self.dense_features: DenseFeatures | None = None
        self.specs: list[PairwiseKernel] = []
        self.messengers, self.compat, self.pairwise_weights = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.register_load_state_dict_pre_hook(_keep_fixed)  # type: ignore[no-untyped-call]
        self.first_unary_weight = float(unary_weight)
        hold(self, "unary_weight", torch.tensor(self.first_unary_weight), learnable=not fixed_weighting)
        for options in pairwise_kernels:
            self.add_pairwise_kernel(**(asdict(options) if isinstance(options, PairwiseKernel) else options))

    def add_pairwise_kernel(
        self,
        kernel_size: IntOrPair = 3,
        dilation: IntOrPair = 1,
        blur: int = 1,
        compat_type: str = "4d",
        spatial_filter: bool = True,
        pairwise_weight: float = 1.0,
        symmetric_normalization: bool = False,
    ) -> None:
        """Add a pairwise term; `forward` then takes one more feature map.

        Args:
            kernel_size: the window, odd; padding keeps the size.
            dilation: of the window.
            blur: Q and the features are average-pooled by it first, and the message is enlarged bilinearly.
            compat_type: `4d`, weights from class to class for every tap; `2d`, one filter for all classes and then a
                matrix from class to class; `potts`, one filter, classes talk only to themselves; `na`, as `4d` but an
                ordinary convolution, which the features do not steer.
            spatial_filter: shared filters start as a Gaussian and are learned; else they are ones with a zero centre.
                Weights from class to class (`4d`, `na`) start as a Gaussian and are learned either way.
            pairwise_weight: w, learned for `potts` without spatial filter only (the others' filters have a scale).
            symmetric_normalization: messages are D^-1/2 K D^-1/2 Q, with D the sums of K (and filter) over each
                window, as in the usual dense CRF; for shared filters.
        """
        spec = PairwiseKernel(
            kernel_size, dilation, blur, compat_type, spatial_filter, pairwise_weight, symmetric_normalization
        )
        index, window = len(self.specs), make_window(kernel_size, 1, "same", dilation)
        sizes = (self.classes, self.classes, window.kernel_size, 1, window.padding, window.dilation)
        messenger: nn.Conv2d
        if compat_type == "na":
            messenger = nn.Conv2d(*sizes, bias=False)
        else:
            messenger = PacConv2d(*sizes, bias=False, shared_filters=spec.shared)
        del messenger.weight
        hold(messenger, "weight", self._starting_filter(spec), learnable=spec.learned)
        compat: nn.Module = nn.Identity()
        if compat_type == "2d":
            compat = nn.Conv2d(self.classes, self.classes, 1, bias=False)
            with torch.no_grad():
                compat.weight.copy_(_between_others(self.classes))
        number = self.unary_weight.new_tensor(spec.starting_number)
        learnable = compat_type == "potts" and not spatial_filter and not self.fixed_weighting
        hold(self.pairwise_weights, str(index), number, learnable=learnable)
        # A kernel added to a CRF that was moved or cast goes where the rest of it is.
        messenger.to(self.unary_weight)
        compat.to(self.unary_weight)
        self.messengers.append(messenger)
        self.compat.append(compat)
        self.specs.append(spec)

    @property
    def num_pairwise_kernels(self) -> int:
        """How many pairwise terms there are."""
        return len(self.specs)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """What is learned as it was at first; noise of `perturbed_init` is drawn anew."""
        if isinstance(self.unary_weight, nn.Parameter):
            self.unary_weight.fill_(self.first_unary_weight)
        for index, (spec, messenger, compat) in enumerate(zip(self.specs, self.messengers, self.compat, strict=True)):
            if spec.learned:
                messenger.weight.copy_(self._starting_filter(spec))  # type: ignore[operator]
            if isinstance(compat, nn.Conv2d):
                compat.weight.copy_(_between_others(self.classes))
            number = getattr(self.pairwise_weights, str(index))
            if isinstance(number, nn.Parameter):
                number.fill_(spec.starting_number)

    def _starting_filter(self, spec: PairwiseKernel) -> Tensor:
        weight = starting_weight(self.classes, pair("kernel_size", spec.kernel_size, 1), spec)
        if self.perturbed_init and not spec.shared:
            weight += torch.empty_like(weight).uniform_(-0.0005, 0.0005)
        return weight

    @classmethod
    def from_densecrf(
        cls,
        channels: int,
        gaussian_sxy: float = 3.0,
        gaussian_compat: float = 3.0,
        bilateral_sxy: float = 80.0,
        bilateral_srgb: float = 13.0,
        bilateral_compat: float = 10.0,
        num_steps: int = 5,
        final_output: str = "log_Q",
        kernel_size: int = 11,
        blur: int = 2,
        symmetric_normalization: bool = True,
    ) -> "PacCRF":
        """The two-kernel equivalent of a dense CRF (Kraehenbuehl and Koltun, NeurIPS 2011), from its parameters.

        A Gaussian term over position and a bilateral one over position and colour, Potts compatibility, symmetric
        normalisation, messages that include the pixel's own: what `addPairwiseGaussian(sxy, compat)` and
        `addPairwiseBilateral(sxy, srgb, compat)` set up. The windows stop at about two standard deviations of
        position: taps are spread (`dilation`) until `kernel_size` of them reach that far, for the bilateral term on
        maps pooled by `blur`. With `blur=1` and a window that covers the image it is the dense CRF exactly.

        Call `crf.refine(logits, image)`; `bilateral_srgb` is in the image's unit (13 is meant for 0..255).
        """
        scales = {"gaussian_sxy": gaussian_sxy, "bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb}
        for name, value in scales.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        _check_numbers(kernel_size=kernel_size, blur=blur)
        crf = cls(channels, num_steps, final_output, fixed_weighting=True)
        terms = ((gaussian_sxy, gaussian_compat, 1), (bilateral_sxy, bilateral_compat, blur))
        for sxy, compat, by in terms:
            dilation = max(1, round(2 * sxy / (by * max(1, kernel_size // 2))))
            # A tap stands for this many pixels. Normalisation divides it out again, a bare sum has to count them.
            pixels = 1 if symmetric_normalization else (by * dilation) ** 2
            crf.add_pairwise_kernel(
                kernel_size,
                dilation,
                by,
                "potts",
                spatial_filter=False,
                pairwise_weight=compat * pixels,
                symmetric_normalization=symmetric_normalization,
            )
        for messenger in crf.messengers:
            messenger.weight.fill_(1.0)  # type: ignore[operator] # the centre too: a pixel's own message
        crf.dense_features = DenseFeatures(**scales)
        return crf

    @classmethod
    def conv_crf(
        cls,
        channels: int,
        num_steps: int = 5,
        final_output: str = "log_Q",
        kernel_size: int = 11,
        blur: int = 4,
        gaussian_sxy: float = 3.0,
        bilateral_sxy: float = 80.0,
        bilateral_srgb: float = 13.0,
    ) -> "PacCRF":
        """The Conv-CRF configuration (Teichmann and Cipolla, BMVC 2019): truncated windows, learnable Potts weights.

        A position and a position-and-colour kernel, each 11 x 11 on maps pooled by 4. Call
        `crf.refine(logits, image)`; `bilateral_srgb` is in the image's unit.
        """
        crf = cls(channels, num_steps, final_output)
        for weight in (3.0, 10.0):
            crf.add_pairwise_kernel(kernel_size, 1, blur, "potts", False, weight, True)
        crf.dense_features = DenseFeatures(gaussian_sxy, bilateral_sxy, bilateral_srgb)
        return crf

    def forward(self, unary: Tensor, features: Features, *, logQ: Tensor | None = None) -> Tensor:  # noqa: N803
        """Run all steps; see the class."""
        checked = self._checked(unary, features, logQ)
        return self._inferred(Unary.of(unary), checked, logQ)

    def refine(self, logits: Tensor, image: Tensor) -> Tensor:
        """Refine coarse or fine logits [B, C, h, w] along an image [B, 3, H, W]: [B, C, H, W].

        For a CRF from `from_densecrf` or `conv_crf`. Logits smaller than the image are enlarged bilinearly first;
        neighbours at which a class is impossible, -inf, do not count, unless it is impossible at all of them. One
        channel is a binary logit, as in the class.

        Raises:
            TypeError: where an argument is no floating tensor.
            ValueError: where a shape does not fit, this CRF has features of its own, the image is not finite, or at a
                pixel a logit is nan or +inf, or all are -inf. Values are not looked at where a call is traced.
        """
        if self.dense_features is None:
            raise ValueError("this PacCRF was not made by from_densecrf or conv_crf: call crf(unary, features)")
        check_image("logits", logits)
        check_image("image", image)
        check_devices(logits.device, {"image": image}, "logits")
        if logits.shape[1] != self.channels:
            raise ValueError(f"logits must have {self.channels} channels, got {logits.shape[1]}")
        unary = Unary.of(logits, (image.shape[2], image.shape[3]))
        mean_field.check_values(unary.logits, image)
        features = self.dense_features.of(image)
        if image.shape[0] != logits.shape[0]:
            raise ValueError(f"image must have the logits' batch of {logits.shape[0]}, got {image.shape[0]}")
        return self._inferred(unary, features)

    def _inferred(self, unary: Unary, features: Sequence[Tensor], start: Tensor | None = None) -> Tensor:
        log_q = mean_field.inferred([self] * self.num_steps, unary, features, start)
        return mean_field.finish(log_q, self.final_output, self.channels)

    def _checked(self, unary: Tensor, features: Features, start: Tensor | None) -> list[Tensor]:
        """The features, one a kernel."""
        check_image("unary", unary)
        b, c, height, width = unary.shape
        if c != self.channels:
            raise ValueError(f"unary must have {self.channels} channels, got {c}")
        if start is not None:
            check_image("logQ", start)
            check_devices(unary.device, {"logQ": start}, "unary")
            if start.shape != unary.shape:
                raise ValueError(f"logQ must be of the unary's shape {list(unary.shape)}, got {list(start.shape)}")
        if isinstance(features, Tensor):
            features = [features] * len(self.specs)
        if not isinstance(features, (list, tuple)):
            raise TypeError(f"features must be a tensor, or a list of one a kernel, got {type(features).__name__}")
        if len(features) != len(self.specs):
            raise ValueError(f"features must hold one map a pairwise kernel, {len(self.specs)}, got {len(features)}")
        steered = []
        for index, (feature, spec) in enumerate(zip(features, self.specs, strict=True)):
            if feature is None and spec.compat_type == "na":
                steered.append(unary.new_zeros(()).expand(b, 1, height, width))
                continue
            check_image(f"features[{index}]", feature)
            check_devices(unary.device, {f"features[{index}]": feature}, "unary")
            if feature.shape[0] != b or feature.shape[2] != height or feature.shape[3] != width:
                raise ValueError(f"features[{index}] must be [{b}, G, {height}, {width}], got {list(feature.shape)}")
            steered.append(feature)
        return steered

    def extra_repr(self) -> str:
        """Classes, steps and what comes out."""
        return f"channels={self.channels}, num_steps={self.num_steps}, final_output={self.final_output}"


class PacCRFLoose(nn.Module):
    """A `PacCRF` whose steps have weights of their own; the same arguments, calls and errors.

    In its `state_dict`, `steps.{t}.` stands before the names of `PacCRF`.
    """

    @answers(native_impl=NATIVE_IMPL)
    def __init__(
        self,
        channels: int,
        num_steps: int = 5,
        final_output: str = "log_Q",
        perturbed_init: bool = True,
        fixed_weighting: bool = False,
        unary_weight: float = 1.0,
        pairwise_kernels: "Sequence[Mapping[str, Any] | PairwiseKernel]" = (),
    ) -> None:
        super().__init__()
        _check_numbers(num_steps=num_steps)
        _check_final_output(final_output)
        self.final_output = final_output
        self.steps = nn.ModuleList(
            PacCRF(channels, 1, "log_Q", perturbed_init, fixed_weighting, unary_weight, pairwise_kernels)
            for _ in range(num_steps)
        )

    def add_pairwise_kernel(self, *arguments: Any, **options: Any) -> None:
        """Add a pairwise term to every step; see `PacCRF.add_pairwise_kernel`."""
        for step in self._steps():
            step.add_pairwise_kernel(*arguments, **options)

    @property
    def num_pairwise_kernels(self) -> int:
        """How many pairwise terms a step has."""
        return self._steps()[0].num_pairwise_kernels

    def reset_parameters(self) -> None:
        """What is learned as it was at first, in every step."""
        for step in self._steps():
            step.reset_parameters()

    def forward(self, unary: Tensor, features: Features, *, logQ: Tensor | None = None) -> Tensor:  # noqa: N803
        """Run all steps; see `PacCRF`."""
        steps = self._steps()
        checked = steps[0]._checked(unary, features, logQ)
        log_q = mean_field.inferred(steps, Unary.of(unary), checked, logQ)
        return mean_field.finish(log_q, self.final_output, steps[0].channels)

    def _steps(self) -> list[PacCRF]:
        return list(self.steps)  # type: ignore[arg-type] # a ModuleList does not say of what


def refine(logits: Tensor, image: Tensor, **densecrf: Any) -> Tensor:
    """Refine a segmentation's logits along an image with a dense CRF's parameters, in one call.

    `PacCRF.from_densecrf(channels, **densecrf).refine(logits, image)`: [B, C, h, w], [B, 3, H, W] -> [B, C, H, W].
    """
    check_image("logits", logits)
    crf = PacCRF.from_densecrf(logits.shape[1], **densecrf).to(logits)
    return crf.refine(logits, image)


def _keep_fixed(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A weight that is not learned, and that a state_dict lacks, stays as it is: published files have none."""
    if not isinstance(module.unary_weight, nn.Parameter):
        state_dict.setdefault(f"{prefix}unary_weight", module.unary_weight)


def _between_others(classes: int) -> Tensor:
    """Each class to all but itself, as a 1 x 1 filter."""
    return 1 - torch.eye(classes)[:, :, None, None]


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _check_final_output(final_output: str) -> None:
    if final_output not in FINAL_OUTPUTS:
        raise ValueError(f"final_output must be one of {', '.join(FINAL_OUTPUTS)}, got {final_output!r}")
