"""Networks of transformers, built from their configuration: plain JSON, for which nothing is fetched or run.

A saved model is a folder (or a repository of the hub) with config.json and model.safetensors. Only classes of the
installed transformers are built, by the model_type and the class that the configuration names; code that lies beside
it is not looked at.
"""

import copy
import functools
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hotswap.errors import HotswapError, one_line
from hotswap.files.atomic import PathLike, check_readable
from hotswap.network.derived import is_derived
from hotswap.network.names import closest
from hotswap.zoo import image_stats

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
MAX_BYTES = 4 << 20  # of a configuration; the largest real ones list 21,843 labels
_MAX_DEPTH = 10
_LARGEST = 10**7  # number in a configuration; no width or vocabulary is above it
_COUNTED = re.compile(r"depth|layer|block|stage")
_DEEPEST = 10**5  # number under such a key: lists of this length are created before any layer

# Keys about a model's origin or use, not about the network.
_DROPPED = frozenset(
    (
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "torchscript"),
        *("task_specific_params", "gradient_checkpointing"),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
    )
)
# Free text that is never looked up: mappings between names and numbers.
_LABELS = ("id2label", "label2id")
# Keys that are refused: they name code, or libraries that rewrite the network.
_REFUSED = re.compile(r"auto_map|implementation|quantization|compression|trust|custom_pipelines|__")
# Keys that may hold no text and not true: options of transformers and timm that read files or fetch something.
_LOOKED_UP = re.compile(r"pretrained|checkpoint|cache_dir|file|url|hub|path|script|jit")
_TEXT = re.compile(r"[\w.\-+ ]{0,64}")  # no path and no address
_BACKBONE = "timm_backbone"  # the model_type of timm's networks inside others


def read_config(path: PathLike) -> dict[str, Any]:
    """The configuration of a saved model, reduced to the network and its `architectures`.

    Raises:
        HotswapError: where it cannot be read, is no configuration, or asks for what it may not (see `checked`).
    """
    config = json_object(path)
    if not isinstance(config.get("model_type"), str):
        raise HotswapError(f"{str(path)!r} is no configuration of transformers: it has no model_type")
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise HotswapError(f"{str(path)!r} does not say of which class the network is: it has no architectures")
    if config.get("auto_map") and not hasattr(_transformers(), names[0]):
        raise HotswapError(
            f"{str(path)!r} names {names[0]}, which is code of the model's own, and hotswap runs none; build the "
            "network yourself and name it as package.module:factory"
        )
    plain: dict[str, Any] = {**_without(config, ("auto_map",)), "architectures": names[:1]}
    checked(_without(plain, ()), str(path), typed=True)
    return plain


def read_preprocessor(path: PathLike) -> image_stats.ImageStats:
    """Size, mean and standard deviation (in 0..1) of images, from a saved model's preprocessor.

    A size that keeps the proportions is a square of its shortest edge here.

    Raises:
        HotswapError: where it cannot be read, or says what cannot be.
    """
    config = json_object(path)
    crop = config.get("crop_size") if config.get("do_center_crop", True) else None
    size = crop or (config.get("size") if config.get("do_resize", True) else None)
    # The preprocessor multiplies a pixel, which is in 0..1 here, by 255 and by the factor, and then normalises it.
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    mean, std = config.get("image_mean"), config.get("image_std")
    if config.get("do_normalize") is False:
        mean, std = [0.0], [1.0]
    try:
        if mean is not None and std is not None:
            mean, std = ([x / (255.0 * float(factor)) for x in numbers] for numbers in (mean, std))
        return image_stats.from_values(mean, std, _height_and_width(size))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise HotswapError(f"{str(path)!r} does not say how images are prepared ({one_line(error)})") from error


def _height_and_width(size: Any) -> list[Any] | None:
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        sides = [size.get("height", edge), size.get("width", edge)]
        return None if None in sides else sides
    return [size, size] if isinstance(size, int) else None


def network_class(name: str) -> type[Any]:
    """Look up a network's class in the installed transformers.

    Raises:
        HotswapError: where it has none of that name.
    """
    transformers = _transformers()
    kind: Any = getattr(transformers, name, None) if name.isidentifier() else None
    is_network = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_network or kind.config_class is None:
        raise HotswapError(f"transformers {transformers.__version__} has no network {name!r}")
    network: type[Any] = kind
    return network


def build(network: type[Any], config: Mapping[str, Any]) -> nn.Module:
    """Build a network of transformers, untrained and in training mode.

    Args:
        network: see `network_class`.
        config: its configuration, as `recorded` or `read_config` gives it.

    Raises:
        HotswapError: where the configuration is another class's. What transformers raises of values that it does not
            like is let through.
    """
    known, kind = _transformers().CONFIG_MAPPING, config.get("model_type")
    if kind not in known:
        raise HotswapError(f"this transformers has no model_type {kind!r}{closest(str(kind), known)}")
    if not issubclass(known[kind], network.config_class):
        raise HotswapError(f"{network.__name__} of transformers is no network of model_type {kind!r}")
    built: nn.Module = network(known[kind].from_dict(_without(config, ())))
    return built.train()


@dataclass(frozen=True)
class Renamed:
    """A saved model's weights under the names of the installed version of transformers."""

    weights: dict[str, Tensor]
    unexpected: tuple[str, ...]  # names that the network does not have


def renamed(model: nn.Module, weights: Mapping[str, Tensor]) -> Renamed | None:
    """Convert weights from `save_pretrained` to the network's present names and layout.

    Transformers renames modules from version to version, and keeps the files' names. Nothing is copied where only
    names change. None for a network that is none of transformers'.
    """
    network = _class_of(model)
    if network is None:
        return None
    floats = {x.dtype for x in weights.values() if x.is_floating_point()}
    with _silent():
        loaded, info = network.from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=dict(weights),
            dtype=functools.reduce(torch.promote_types, floats)
            if floats
            else torch.float32,  # the widest, so that no weight loses digits
            ignore_mismatched_sizes=True,  # they are reported below
            output_loading_info=True,
        )
    state = {name: x for name, x in loaded.state_dict().items() if name not in info["missing_keys"]}
    for name, shape, _ in info["mismatched_keys"]:
        state[name] = torch.empty(shape, device="meta")  # so that the caller reports the shape
    return Renamed(state, tuple(sorted(info["unexpected_keys"])))


def recorded(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The class and the configuration to write into a checkpoint; None for networks that are not of transformers.

    Raises:
        HotswapError: where a file may not hold its configuration.
    """
    network = _class_of(model)
    if network is None:
        return None
    config = json.loads(json.dumps(_without(model.config.to_dict(), ())))  # type: ignore[operator, union-attr]
    checked(config, f"the configuration of {network.__name__}")
    return network.__name__, config


def checked(config: Any, where: str, *, typed: bool = False) -> Mapping[str, Any]:
    """Refuse a configuration that could make transformers read, fetch or run something, or never finish.

    Args:
        config: what JSON gave, which is not trusted.
        where: how to call it in errors.
        typed: whether it is of a saved model that the user named; old ones name timm's backbone in another place.

    Returns:
        `config`.

    Raises:
        HotswapError: where it is not of plain values, is too large, or has an entry that it may not have.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("model_type"), str):
        raise HotswapError(f"{where} must be a mapping with a model_type")
    _check_depth(config, where)
    if len(json.dumps(config)) > MAX_BYTES:
        raise HotswapError(f"{where} is above {MAX_BYTES >> 20} MiB")
    for owner, key, value in _entries(config):
        refused = _REFUSED.search(key) and value is not None
        looked_up = _LOOKED_UP.search(key) and (value is True or isinstance(value, str | Mapping))
        of_timm = owner.get("model_type") == _BACKBONE or (typed and owner.get("use_timm_backbone") is True)
        backbone = key == "backbone" and value is not None and not of_timm
        text = isinstance(value, str) and not _TEXT.fullmatch(value)
        if refused or looked_up or backbone or text or not _size(value) <= largest(key):
            raise HotswapError(
                f"{where} may not hold {key[:80]!r}: {str(value)[:80]!r}, as nothing is fetched, read or run for it; "
                "build the network yourself and pass it as model (on the command line: --model)"
            )
    return config


def json_object(path: PathLike, what: str = "a configuration as JSON") -> dict[str, Any]:
    """The content of a saved model's JSON file.

    Raises:
        HotswapError: where it cannot be read, is too large, or holds something else than `what`.
    """
    file = check_readable(path)
    if file.stat().st_size > MAX_BYTES:
        raise HotswapError(f"{str(path)!r} is no configuration of a network: it is above {MAX_BYTES >> 20} MiB")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HotswapError(f"{str(path)!r} must hold {what} ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise HotswapError(f"{str(path)!r} must hold a JSON object, got a {type(content).__name__}")
    return content


def largest(key: str) -> int:
    """The largest number that a file may give for a key."""
    return _DEEPEST if _COUNTED.search(key) else _LARGEST


def _check_depth(value: Any, where: str, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise HotswapError(f"{where} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_depth(item, where, depth + 1)


def _size(value: Any) -> float:
    """The size of a number, or the sum over a list; NaN for NaN."""
    if isinstance(value, list):
        return sum(map(_size, value))
    return abs(value) if isinstance(value, int | float) else 0


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
    """All values, nested ones too, each with its key and the mapping it is in."""
    for key, value in config.items():
        if key in _LABELS and isinstance(value, Mapping) and all(isinstance(x, str | int) for x in value.values()):
            continue
        pending = [value]
        while pending:
            item = pending.pop()
            yield config, key, item
            if isinstance(item, list):
                pending += item
            elif isinstance(item, Mapping):
                yield from _entries(item)


def _without(value: Any, more: tuple[str, ...]) -> Any:
    """A configuration reduced to the network, nested configurations too."""
    if isinstance(value, list | tuple):
        return [_without(item, more) for item in value]
    if not isinstance(value, Mapping):
        return value
    kept = {
        key: item if key in _LABELS else _without(item, more)
        for key, item in value.items()
        if key not in _DROPPED and key not in more
    }
    return kept | ({"use_pretrained_backbone": False} if "use_pretrained_backbone" in kept else {})


def _class_of(model: nn.Module) -> type[Any] | None:
    """The class in transformers of a network, swapped or plain."""
    for base in type(model).__mro__:
        if base.__module__.startswith("transformers.models.") and not is_derived(base):
            return base if getattr(_transformers(), base.__name__, None) == base else None
    return None


@contextmanager
def _silent() -> Iterator[None]:
    """Silences transformers while it loads; hotswap reports instead."""
    logging = _transformers().utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except (ImportError, RuntimeError, OSError) as error:  # the last two: built for another version of torch
        raise HotswapError(
            f"transformers cannot be imported ({one_line(error)}); pip install 'hotswap[transformers]'"
        ) from error
