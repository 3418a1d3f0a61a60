"""Ways to enlarge scores beside an image: ours, and what people would use instead; each with a small grid."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.real import propagation, solvers
from hotswap.choices import FOOTPRINTS, LAB, RGB
from hotswap.targets.footprints import by_factor
from hotswap.targets.guide_spaces import SCALES, GuideSpace
from hotswap.targets.output import GUIDED, Output, layer_of
from pac_ops import pacresize2d, refine, srgb_to_lab
from pac_ops.binary import labels_of

OURS = "ours"
OWN = (OURS, "ours_chosen", "behind", "at_once")
Array = npt.NDArray[Any]
Setting = Mapping[str, Any]


class Coarse(NamedTuple):
    """Scores to be enlarged to an image's size."""

    scores: Tensor  # [1, C, h, w]
    image: Tensor  # uint8 [3, H, W]
    align_corners: bool


@dataclass(frozen=True)
class Rival:
    """A method: of coarse scores which class each pixel is of, [H, W], at one of some settings."""

    title: str
    run: Callable[..., Tensor]
    settings: Sequence[Setting] = ({},)
    package: str | None = None  # that must be importable
    slow: bool = False  # so slow that it runs on crops alone

    @property
    def is_missing(self) -> bool:
        """Whether its package is not there."""
        return self.package is not None and importlib.util.find_spec(self.package) is None

    def labels(self, coarse: Coarse, setting: Setting) -> Tensor:
        """Labels [H, W]. The method is given the classes that win at some coarse pixel, which saves it time."""
        classes: Tensor = coarse.scores.max(1).indices.unique()  # typed, as torch leaves it open
        if len(classes) == 1:
            return classes.expand(coarse.image.shape[1:])
        return classes[self.run(coarse._replace(scores=coarse.scores[:, classes]), **setting)]


def bilinear(coarse: Coarse) -> Tensor:
    """Labels of `F.interpolate`."""
    return labels_of(_enlarged(coarse))[0]


def ours(coarse: Coarse, *, scale: float, wider: int = 0) -> Tensor:
    """Guided enlargement by the default's rule (see `by_factor`), its footprints `wider` by so much."""
    steps, halvings = by_factor(coarse.scores.shape[2:], coarse.image.shape[1:], soft=True)
    out = pacresize2d(
        coarse.scores,
        srgb_to_lab(coarse.image[None] / 255),
        align_corners=coarse.align_corners,
        scale=scale,
        footprint=[min(n + wider, FOOTPRINTS[-1]) for n in steps],
        halvings=halvings,
        residual=True,
    )
    return labels_of(out)[0]


def behind(coarse: Coarse) -> Tensor:
    """The target "output_guided", behind `F.interpolate`."""
    space = GuideSpace(LAB, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    layer = layer_of(Output(GUIDED, space=space, channels=coarse.scores.shape[1], guide_scale=SCALES[LAB]), _CPU)
    return labels_of(layer(_enlarged(coarse), coarse.image[None] / 255))[0]


def at_once(coarse: Coarse) -> Tensor:
    """The default there was before: 2 x 2 neighbours, RGB, at once."""
    out = pacresize2d(
        coarse.scores, coarse.image[None] / 255, align_corners=coarse.align_corners, scale=SCALES[RGB], footprint=2
    )
    return labels_of(out)[0]


def dense_crf(coarse: Coarse, *, reach: float, colour: float, weight: float, smooth: float) -> Tensor:
    """A dense CRF's mean field behind `F.interpolate` (Kraehenbuehl and Koltun, 2011)."""
    probabilities = _enlarged(coarse).softmax(1)[0]
    _, height, width = probabilities.shape
    field = importlib.import_module("pydensecrf.densecrf").DenseCRF2D(width, height, len(probabilities))
    field.setUnaryEnergy(-probabilities.clamp_min(1e-8).log().flatten(1).numpy())
    if smooth:
        field.addPairwiseGaussian(sxy=3, compat=smooth)
    field.addPairwiseBilateral(sxy=reach, srgb=colour, rgbim=_pixels(coarse.image), compat=weight)
    marginals = torch.from_numpy(np.array(field.inference(5)))
    return marginals.max(0).indices.view(height, width)


def guided_filter(coarse: Coarse, *, radius: int, epsilon: float) -> Tensor:
    """The guided filter (He et al., 2010), behind `F.interpolate`."""
    return _filtered(coarse, lambda cv, guide, x: cv.guidedFilter(_floats(guide), x, radius, epsilon))


def global_smoother(coarse: Coarse, *, strength: float, colour: float) -> Tensor:
    """The fast global smoother (Min et al., 2014), behind `F.interpolate`."""
    return _filtered(coarse, lambda cv, guide, x: cv.fastGlobalSmootherFilter(guide, x, strength, colour))


def domain_transform(coarse: Coarse, *, reach: float, colour: float) -> Tensor:
    """The domain transform (Gastal and Oliveira, 2011), behind `F.interpolate`."""
    return _filtered(coarse, lambda cv, guide, x: cv.dtFilter(guide, x, reach, colour))


def joint_bilateral(coarse: Coarse, *, reach: float, colour: float) -> Tensor:
    """The joint bilateral filter behind `F.interpolate`."""
    return _filtered(coarse, lambda cv, guide, x: cv.jointBilateralFilter(_floats(guide), x, -1, colour, reach))


def superpixels(coarse: Coarse, *, side: int, compact: float) -> Tensor:
    """The class of most probability within each SLIC superpixel (Achanta et al., 2012)."""
    cv2 = importlib.import_module("cv2")
    slic = cv2.ximgproc.createSuperpixelSLIC(
        cv2.cvtColor(_pixels(coarse.image), cv2.COLOR_RGB2Lab), 100, side, compact
    )
    slic.iterate(10)
    parts = torch.from_numpy(slic.getLabels()).long().flatten()
    probabilities = _enlarged(coarse).softmax(1)[0].flatten(1)
    sums = probabilities.new_zeros(len(probabilities), int(parts.max()) + 1).index_add_(1, parts, probabilities)
    return sums.max(0).indices[parts].view(coarse.image.shape[1:])


def pac_crf(coarse: Coarse, *, reach: float, colour: float, weight: float, smooth: float) -> Tensor:
    """Our PAC-CRF with a dense CRF's parameters, behind `F.interpolate`."""
    out = refine(
        _enlarged(coarse),
        coarse.image[None].float(),
        gaussian_compat=smooth,
        bilateral_sxy=reach,
        bilateral_srgb=colour,
        bilateral_compat=weight,
    )
    return labels_of(out)[0]


def kopf(coarse: Coarse, *, reach: float, colour: float) -> Tensor:
    """Joint bilateral upsampling (Kopf et al., 2007) over 5 x 5 coarse neighbours."""
    out = propagation.joint_bilateral_upsampling(
        coarse.scores[0], coarse.image / 255, coarse.align_corners, reach, colour
    )
    return out.max(0).indices


def propagated(coarse: Coarse, *, dilations: Sequence[int], steps: int, width: float) -> Tensor:
    """Propagation as PAMR's (Araslanov and Roth, 2020), of probabilities behind `F.interpolate`."""
    out = propagation.pamr(_enlarged(coarse).softmax(1)[0], coarse.image / 255, dilations, steps, width)
    return out.max(0).indices


def bilateral_solver(coarse: Coarse, *, strength: float, reach: float, colour: float) -> Tensor:
    """The fast bilateral solver (Barron and Poole, 2016), of probabilities behind `F.interpolate`."""
    cv2 = importlib.import_module("cv2")
    yuv = torch.from_numpy(cv2.cvtColor(_pixels(coarse.image), cv2.COLOR_RGB2YUV)).permute(2, 0, 1)
    probabilities = _enlarged(coarse).softmax(1)[0]
    return solvers.bilateral_solver(probabilities, yuv, strength, reach, colour, colour).max(0).indices


def label_propagation(coarse: Coarse, *, alpha: float, width: float) -> Tensor:
    """Label propagation between pixels as LPOSS+ has it (2025), of probabilities behind `F.interpolate`."""
    lab = srgb_to_lab(coarse.image[None] / 255)[0]
    return solvers.label_propagation(_enlarged(coarse).softmax(1)[0], lab, alpha, width).max(0).indices


def upsample_anything(coarse: Coarse, *, reach: float, rate: float) -> Tensor:
    """Upsample Anything (2025): a gaussian for each coarse pixel, fitted to the image."""
    image = coarse.image / 255
    return solvers.fitted_gaussians(coarse.scores[0], image, coarse.align_corners, reach, rate).max(0).indices


def _enlarged(coarse: Coarse) -> Tensor:
    return F.interpolate(
        coarse.scores, coarse.image.shape[1:], mode="bilinear", align_corners=coarse.align_corners or None
    )


def _filtered(coarse: Coarse, run: Callable[[Any, Array, Array], Array]) -> Tensor:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(torch.get_num_threads())
    scores, guide = _enlarged(coarse)[0].numpy(), _pixels(coarse.image)
    out = []
    for start in range(0, len(scores), 3):  # three channels a call, the last ones one by one
        part = scores[start : start + 3]
        groups = [part] if len(part) == 3 else [part[n : n + 1] for n in range(len(part))]
        for group in groups:
            filtered = run(cv2.ximgproc, guide, np.ascontiguousarray(group.transpose(1, 2, 0)))
            out.append(filtered.reshape(*guide.shape[:2], len(group)).transpose(2, 0, 1))
    return torch.from_numpy(np.concatenate(out)).max(0).indices


def _pixels(image: Tensor) -> Array:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _floats(image: Array) -> Array:
    return (image / 255).astype(np.float32)


def _grid(**values: Sequence[Any]) -> list[Setting]:
    settings: list[Setting] = [{}]
    for name, choices in values.items():
        settings = [{**setting, name: choice} for setting in settings for choice in choices]
    return settings


_CV = "cv2"
_CPU = torch.device("cpu")
_CRF = [
    {"reach": reach, "colour": colour, "weight": weight, "smooth": smooth}
    for reach, colour, weight, smooth in (
        (30, 5, 10, 3),
        (30, 8, 10, 3),
        (60, 5, 5, 3),
        (8, 5, 2, 0),
        (15, 5, 2, 0),
        (15, 3, 4, 1),
    )
]
_NEAR, _FAR = (1, 2, 4), (1, 2, 4, 8, 12, 24)
RIVALS = {
    "bilinear": Rival("bilinear", bilinear),
    OURS: Rival("**ours**, the default, nothing chosen", ours, [{"scale": SCALES[LAB]}]),
    "ours_chosen": Rival("**ours**, chosen as the rivals are", ours, _grid(scale=(8.0, 12.0, 16.0), wider=(0, 2))),
    "behind": Rival('ours behind bilinear, `"output_guided"`', behind),
    "at_once": Rival("ours, the old default (2 x 2, RGB, scale 8)", at_once),
    "dense_crf": Rival("dense CRF", dense_crf, _CRF, "pydensecrf"),
    "guided_filter": Rival("guided filter", guided_filter, _grid(radius=(2, 4, 8), epsilon=(3e-3, 1e-2)), _CV),
    "global_smoother": Rival(
        "fast global smoother", global_smoother, _grid(strength=(10, 100, 300), colour=(4, 6)), _CV
    ),
    "domain_transform": Rival("domain transform", domain_transform, _grid(reach=(5, 15, 40), colour=(60, 100)), _CV),
    "joint_bilateral": Rival(
        "joint bilateral filter", joint_bilateral, _grid(reach=(2, 3, 6, 10), colour=(0.05,)), _CV
    ),
    "superpixels": Rival("superpixels", superpixels, _grid(side=(6, 10, 16), compact=(10, 20)), _CV),
    "pac_crf": Rival("our PAC-CRF", pac_crf, _CRF),
    "kopf": Rival("joint bilateral upsampling", kopf, _grid(reach=(0.5, 1.0), colour=(0.07, 0.1, 0.2))),
    "pamr": Rival(
        "propagation as PAMR's",
        propagated,
        [
            {"dilations": dilations, "steps": steps, "width": width}
            for dilations, steps, width in ((_NEAR, 3, 0.3), (_NEAR, 3, 0.1), (_NEAR, 10, 0.1), (_FAR, 10, 0.05))
        ],
    ),
    "bilateral_solver": Rival(
        "fast bilateral solver",
        bilateral_solver,
        [
            {"strength": strength, "reach": reach, "colour": colour}
            for strength, reach, colour in ((4, 8, 4), (4, 8, 8), (16, 8, 8), (64, 8, 8), (16, 16, 8), (64, 16, 8))
        ],
        _CV,
    ),
    "lposs": Rival(
        "label propagation as LPOSS+'s",
        label_propagation,
        [
            {"alpha": alpha, "width": width}
            for alpha, width in ((0.95, 0.05), (0.95, 0.02), (0.95, 0.01), (0.8, 0.01))
        ],
    ),
    "upsample_anything": Rival(
        "Upsample Anything", upsample_anything, _grid(reach=(0.5, 0.7), rate=(0.005, 0.02)), slow=True
    ),
}
