"""Published networks of segmentation: FCN-8s in three forms, alone and with a CRF behind it."""

import inspect
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotswap.errors import HotswapError
from hotswap.zoo.image_stats import ImageStats
from recipes.networks.segmentation import fcn8s, fcn8s_paccrf
from recipes.protocols import CAFFE_MEAN, CAFFE_STD, PUBLISHED
from recipes.published import names
from recipes.published.network import Network, Shapes

BACKBONE = "backbone."
_MESSENGER = re.compile(r"crf\.(?:steps\.0\.)?messengers\.0\.weight")
_WINDOW = 11  # of the Conv-CRF, where the file does not hold its filters
_MODULE = "recipes.networks.segmentation"


def is_segmentation(found: Shapes) -> bool:
    """Whether weights have names of a FCN-8s."""
    return any(f"{prefix}conv1_1.weight" in found for prefix in ("", BACKBONE))


def recognise(found: Shapes, file: Path, model: str | None, given: Mapping[str, Any]) -> Network:
    """The network that weights with names of a FCN-8s are of.

    Args:
        found: their names and shapes.
        file: a name that the published page gives says which form they are of.
        model: what the published code's --model was.
        given: options of our network, which replace what is told.

    Raises:
        HotswapError: where nothing says which form it is, or what is said contradicts the weights.
    """
    has_crf = any(name.startswith("crf.") for name in found)
    name, told_by = _named(found, file, model, has_crf=has_crf)
    prefix = BACKBONE if has_crf else ""
    score = found.get(f"{prefix}score_fr.weight")
    if score is None or len(score) != 4:
        raise HotswapError(f"{str(file)!r} looks like a FCN-8s and has no {prefix}score_fr.weight of 4 dimensions")
    options: dict[str, Any] = {"num_classes": score[0], "hidden": score[1], **names.FORMS[name.form]}
    swapped = prefix if name.form == names.SWAPPED else None
    notes: tuple[str, ...] = ()
    if has_crf:
        options |= {"std": list(CAFFE_STD)} | _crf(found, file, name, given)
        if name.crf is not None and name.crf.get("loose") and "loose" not in options:
            notes = ("its steps share their weights, as those that the loose CRF of its name starts from do",)
    made_by = fcn8s_paccrf if has_crf else fcn8s
    factory, usual = made_by.__name__, inspect.signature(made_by).parameters
    told = {**options, **given}
    options = {key: value for key, value in told.items() if key not in usual or value != usual[key].default}
    said = shlex.quote(f"model.options={json.dumps(options)}")
    command = f"hotswap evaluate {factory} --set protocol={PUBLISHED} --set {said}"
    images = ImageStats(CAFFE_MEAN, CAFFE_STD, protocol=PUBLISHED)
    return Network(name.text, told_by, _MODULE, factory, options, command, images, swapped, notes=notes)


def _named(found: Shapes, file: Path, model: str | None, *, has_crf: bool) -> tuple[names.Name, str]:
    """The network's name, and what told it."""
    name = names.of_file(file) if model is None else names.parse(model)
    if name is None:
        behind = ""
        if has_crf:
            behind = "_convcrf" if any(".compat." in key for key in found) else "_crfi5p4d5641p4d5161"
        raise HotswapError(
            f"{str(file)!r} holds a FCN-8s{' with a CRF' * has_crf}, whose weights do not tell how it pads, whether "
            f"it is hot-swapped{' and how its CRF is dilated' * has_crf}; give as model what the published code's "
            f"--model was, such as {', '.join(form + behind for form in names.FORMS)}"
        )
    if (name.crf is not None) != has_crf:
        raise HotswapError(
            f"{str(file)!r} holds {'a' if has_crf else 'no'} CRF, and {name.text} has "
            f"{'none' if has_crf else 'one'}; give another model"
        )
    return name, "the file's name and its weights" if model is None else "the name given and its weights"


def _crf(found: Shapes, file: Path, name: names.Name, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the CRF, by its name and by its weights."""
    kernels = sum(1 for key in found if re.fullmatch(r"feat_scales\.\d+", key))
    if kernels < 1:
        raise HotswapError(f"{str(file)!r} has a CRF and no feat_scales.0; it is none of the networks that are known")
    steps = {int(match[1]) for key in found if (match := re.match(r"crf\.steps\.(\d+)\.", key))}
    options: dict[str, Any] = {"dilations": [1] * kernels, **(name.crf or {})}
    if steps:
        options |= {"loose": True, "steps": len(steps)}
    else:
        options.pop("loose", None)  # a file of shared steps, which the loose network starts from
    messenger = next((shape for key, shape in found.items() if _MESSENGER.fullmatch(key)), None)
    if messenger is None:
        options |= {"spatial_filter": False, "kernel_size": options.get("kernel_size", _WINDOW)}
    else:
        options["kernel_size"] = messenger[-1]
    if not any(key.endswith("unary_weight") for key in found):
        options["fixed_weighting"] = True
    if found["feat_scales.0"] == (3,):
        options["channel_scales"] = True
    dilations = given.get("dilations", options["dilations"])
    if not isinstance(dilations, list) or len(dilations) != kernels:
        raise HotswapError(
            f"{str(file)!r} has {kernels} pairwise kernels, so dilations must be a list of as many, got "
            f"{dilations!r}; give another model, or dilations"
        )
    return options
