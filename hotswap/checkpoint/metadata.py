"""The metadata of a checkpoint, written and read as JSON."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hotswap
from hotswap.errors import HotswapError, first_line
from hotswap.files.weight_names import clipped, listed
from hotswap.targets.guided_layer import is_learned
from hotswap.targets.plan import Plan
from hotswap.zoo import image_stats, providers, transformers
from hotswap.zoo.image_stats import ImageStats
from hotswap.zoo.names import parse

# 1: guides were lone strings; 2: plans had no enlargements (Plan.from_dict still reads both); 3: there was no config;
# 4: there were no images; 5: there was no protocol; 6: only scales were learned, which are single numbers.
FORMAT_VERSION = 7
# The keys of an entry: since which format, and of what type.
_KEYS = {
    "hotswap": (1, str),
    "architecture": (1, str | None),
    "plan": (1, Mapping | None),
    "learned_scales": (1, Mapping),
    "config": (4, Mapping | None),
    "images": (5, Mapping),
    "protocol": (6, str | None),
}
ENTRY = "hotswap"
_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}


@dataclass(frozen=True)
class Metadata:
    """Metadata beside the tensors of a checkpoint."""

    architecture: str | None = None  # a name for `providers.build`
    plan: Plan | None = None  # None where nothing is swapped
    # What swaps learn beside the network's weights, by the names in the swapped state_dict.
    learned_scales: Mapping[str, Tensor] = field(default_factory=dict)
    version: str = ""  # of the hotswap that wrote it
    config: Mapping[str, Any] | None = None  # of a network of transformers
    images: ImageStats = field(default_factory=ImageStats)  # statistics of the training images


def to_json(metadata: Metadata) -> str:
    """The hotswap entry of a file, as JSON."""
    images = metadata.images.to_dict()
    entry = {
        "format_version": FORMAT_VERSION,
        "hotswap": hotswap.__version__,
        "architecture": None if metadata.architecture is None else providers.recordable(metadata.architecture),
        "plan": None if metadata.plan is None else metadata.plan.to_dict(),
        "learned_scales": {name: _written(x) for name, x in metadata.learned_scales.items()},
        "config": metadata.config,
        "images": images,
        "protocol": images.pop("protocol"),
    }
    return json.dumps(entry, allow_nan=False)


def from_entry(entry: Any, file: Path) -> Metadata | None:
    """Read the hotswap entry of a file; None where there is none.

    Raises:
        HotswapError: where it is malformed, asks for what a file may not ask for, or was written by a newer hotswap.
    """
    if entry is None:
        return None
    where = f"the hotswap entry of {str(file)!r}"
    if not isinstance(entry, str):
        raise HotswapError(f"{where} must be text, got a {type(entry).__name__}")
    content = parse_json(entry, where)
    version = content.get("format_version") if isinstance(content, Mapping) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise HotswapError(
            f"{str(file)!r} was written by a newer hotswap (format {version}, and this one reads up to "
            f"{FORMAT_VERSION}); pip install --upgrade hotswap"
        )
    kinds = {name: kind for name, (first, kind) in _KEYS.items() if isinstance(version, int) and version >= first}
    if not kinds or set(content) != {"format_version", *kinds}:
        raise HotswapError(f"{where} is malformed; it was not written by hotswap, or damaged")
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise HotswapError(f"{where}: {name} must not be a {type(content[name]).__name__}")
    scales = {name: _scale(name, x, where) for name, x in content["learned_scales"].items()}
    architecture = content["architecture"]
    if architecture is not None:
        parse(architecture, typed=False)
    config = content.get("config")
    if config is not None:
        transformers.checked(config, f"{where}: config")
    plan = None if content["plan"] is None else parse_plan(content["plan"], where)
    images = _images(content["images"], content.get("protocol"), where) if "images" in content else ImageStats()
    return Metadata(architecture, plan, scales, content["hotswap"], config, images)


def _written(x: Tensor) -> list[Any]:
    """A tensor as JSON values: [number, dtype], or [bytes in base64, dtype, shape]."""
    if x.dim() == 0:
        return [x.item(), _DTYPES[x.dtype]]
    raw = x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return [base64.b64encode(raw).decode(), _DTYPES[x.dtype], list(x.shape)]


def _scale(name: str, data: Any, where: str) -> Tensor:
    """What `_written` wrote.

    Raises:
        HotswapError: where it is anything else, or a number is not finite.
    """
    value, kind, *shape = data if isinstance(data, list) and len(data) in (2, 3) else (None, None)
    dtype = next((dtype for dtype, text in _DTYPES.items() if text == kind), None)
    if is_learned(name) and dtype is not None:
        if isinstance(value, float) and not shape and math.isfinite(value):
            return torch.tensor(value, dtype=dtype)
        if isinstance(value, str) and shape and (read := _decoded(value, dtype, shape[0])) is not None:
            return read
    raise HotswapError(
        f"{where}: learned_scales must hold [number, dtype] or [base64, dtype, shape] by name, "
        f"got {clipped(repr(data))}"
    )


def _decoded(text: str, dtype: torch.dtype, shape: Any) -> Tensor | None:
    """A tensor from its bytes in base64; None where they are not those of finite numbers of this shape."""
    if not (isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape) and shape):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    if len(raw) != math.prod(shape) * dtype.itemsize:
        return None
    read = torch.frombuffer(bytearray(raw), dtype=dtype).view(shape)
    return read if bool(read.isfinite().all()) else None


def _images(data: Mapping[str, Any], protocol: str | None, where: str) -> ImageStats:
    if set(data) != {"mean", "std", "size"}:
        raise HotswapError(
            f"{where}: images must say mean, std and size, got {listed(map(repr, data)) if data else 'nothing'}"
        )
    try:
        return image_stats.from_values(data["mean"], data["std"], data["size"], protocol)
    except HotswapError as error:
        raise HotswapError(f"{where}: {error}") from error


def parse_plan(data: Any, where: str) -> Plan:
    """Read a plan from JSON values; errors begin with `where`."""
    try:
        return Plan.from_dict(data)
    except HotswapError as error:
        raise HotswapError(f"{where}: {clipped(str(error))}") from error


def parse_json(text: str, where: str) -> Any:
    """Parse JSON that came from a file; errors begin with `where`.

    Raises:
        HotswapError: where it is no JSON, or holds a number of more than 15 digits.
    """
    try:
        return json.loads(text, parse_int=_small_int)
    except (ValueError, RecursionError) as error:
        raise HotswapError(f"{where} must be JSON ({first_line(error)})") from error


def _small_int(digits: str) -> int:
    if len(digits) > 15:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
