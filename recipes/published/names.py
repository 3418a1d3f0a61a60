"""The published code's names of segmentation networks, what its `--model` takes: fcn8spac_crfi5p4d5641p4d5161."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotswap.errors import HotswapError
from pac_ops.crf.pairwise import COMPAT_TYPES

# Options of our `fcn8s` by form. The three have the same weights, so that a file does not tell them apart.
FORMS: Mapping[str, Mapping[str, Any]] = {
    "fcn8s": {"padding": 100},
    "fcn8saltpad": {},
    "fcn8spac": {"interpolate": True},
}
SWAPPED = "fcn8spac"  # the form with hot-swapped convolutions
# Files that the published code's page names, and the networks they are of.
FILES = {
    "fcn8s_from_caffe": "fcn8s",
    "fcn8s_paccrf_epoch_30": "fcn8s_crfi5p4d5641p4d5161",
    "fcn8s_paccrf32_epoch_30": "fcn8s_crfi5p4d5321",
    "fcn8s_pacfcn_epoch_20": "fcn8spac",
    "fcn8s_pacfcncrf_epoch_20": "fcn8spac_crfi5p4d5641p4d5161",
}
CONV_CRF = "convcrf"
# Class-to-class weights behind one filter; blur as in Conv-CRF (Teichmann and Cipolla, BMVC 2019).
_CONV_CRF_OPTIONS: Mapping[str, Any] = {"compat_type": "2d", "blur": 4, "unary_weight": 0.8}
_EXAMPLE = "fcn8s, fcn8saltpad, fcn8spac, fcn8s_crfi5p4d5641p4d5161 or fcn8s_convcrf"
_NAME = re.compile(rf"({'|'.join(FORMS)})(frozen)?(?:_({CONV_CRF}|crfi\d+l?(?:p\w+)?))?")
_CRF = re.compile(r"crfi(\d+)(l?)((?:p(?:4d|2d|potts|na)\d+)+)")
_KERNEL = re.compile(rf"p({'|'.join(COMPAT_TYPES)})(\d)(\d+)(\d)")  # kind, window, dilation, blur


@dataclass(frozen=True)
class Name:
    """What the name of a segmentation network says."""

    text: str
    form: str  # of FORMS
    crf: Mapping[str, Any] | None = field(default=None)  # options of our `WithCRF`; None where there is no CRF


def parse(text: str) -> Name:
    """Read a name.

    Raises:
        HotswapError: where it is of another form, or the kernels of a CRF differ in more than their dilation.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise HotswapError(f"model must be what the published code's --model takes, such as {_EXAMPLE}, got {text!r}")
    form, _, crf = match.groups()
    if crf is None:
        return Name(text, form)
    return Name(text, form, dict(_CONV_CRF_OPTIONS) if crf == CONV_CRF else _crf(crf, text))


def of_file(file: Path) -> Name | None:
    """The network of a file of a known name; None for others."""
    known = FILES.get(file.stem.removesuffix(".pth"))
    return None if known is None else parse(known)


def _crf(crf: str, text: str) -> Mapping[str, Any]:
    match = _CRF.fullmatch(crf)
    kernels = [] if match is None else [m.groups() for m in _KERNEL.finditer(match[3])]
    if match is None or not kernels or "".join("p" + "".join(kernel) for kernel in kernels) != match[3]:
        raise HotswapError(
            f"model {text!r}: {crf!r} must be crfi, the steps, l where they are loose, and for each kernel p, its "
            "kind, window, dilation and blur, such as crfi5p4d5641p4d5161"
        )
    shared = {(kind, size, blur) for kind, size, _, blur in kernels}
    if len(shared) > 1:
        raise HotswapError(f"model {text!r}: kernels of one CRF must be of one kind, window and blur")
    ((kind, size, blur),) = shared
    options = {
        "steps": int(match[1]),
        "compat_type": kind,
        "kernel_size": int(size),
        "blur": int(blur),
        "dilations": [int(dilation) for _, _, dilation, _ in kernels],
    }
    return options | ({"loose": True} if match[2] else {})
