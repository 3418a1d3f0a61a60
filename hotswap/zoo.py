"""Networks by name: `torchvision:NAME`, `timm:NAME` and `package.module:factory`, with `?key=value&key=value`.

Networks are built without pretrained weights, and nothing is downloaded, unless an option asks for it. An
architecture named inside a file is not trusted: it may only name a network of the two providers.
"""

import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from hotswap.errors import HotswapError, one_line
from hotswap.naming import closest

TORCHVISION, TIMM = "torchvision", "timm"
FORMS = "torchvision:NAME, timm:NAME or package.module:factory, with ?key=value&key=value after it"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MAX_LENGTH = 1000  # of a spec; far above any real one
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = {TORCHVISION: re.compile(r"\w+"), TIMM: re.compile(r"\w+(\.\w+)?")}  # of timm, with a tag of its weights
# Options that ask for weights: they are no part of an architecture.
_WEIGHT_OPTIONS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
# What a file may not ask for: options that read files, fetch something, or compile. Rather too many than too few.
_REFUSED_IN_FILES = re.compile(r"weights|pretrained|checkpoint|cache|file|url|hub|script|jit")
_STRING_IN_FILES = re.compile(r"[\w.\-]{0,64}")  # no path and no address


@dataclass(frozen=True)
class Spec:
    """A network's name, taken apart; `str` puts it together again."""

    provider: str  # "torchvision", "timm", or the module of a factory
    name: str
    options: Mapping[str, Any]

    @property
    def is_factory(self) -> bool:
        """Whether it names a function of the user's own."""
        return self.provider not in _NAME

    @property
    def brings_weights(self) -> bool:
        """Whether an option asks for pretrained weights of the whole network."""
        return any(self.options.get(key) for key in ("weights", "pretrained"))

    def __str__(self) -> str:
        options = "&".join(f"{key}={_as_text(value)}" for key, value in self.options.items())
        return f"{self.provider}:{self.name}" + (f"?{options}" if options else "")


def parse(spec: str) -> Spec:
    """Take a network's name apart. Nothing is imported.

    Option values are JSON (`21`, `0.5`, `true`, `null`, `[1,2]`, `"text"`); what is no JSON is text.

    Raises:
        HotswapError: where it is not of one of the three forms, or an option is malformed.
    """
    if not isinstance(spec, str):
        raise HotswapError(f"a network must be named by a string, got {spec!r}; it must be {FORMS}")
    if len(spec) > _MAX_LENGTH:
        raise HotswapError(f"a network's name must be at most {_MAX_LENGTH} characters long, got {len(spec)}")
    address, mark, query = spec.partition("?")
    provider, colon, name = address.partition(":")
    if not colon or not name or not _DOTTED.fullmatch(provider):
        raise HotswapError(f"network {spec!r} must be {FORMS}")
    if provider not in _NAME and not _DOTTED.fullmatch(name):
        raise HotswapError(f"network {spec!r}: {name!r} is no name of a function; it must be package.module:factory")
    options: dict[str, Any] = {}
    for item in query.split("&") if mark else ():
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise HotswapError(f"network {spec!r}: an option must be key=value, got {item!r}")
        if key in options:
            raise HotswapError(f"network {spec!r}: option {key!r} is given twice; leave one out")
        options[key] = _value(spec, key, value)
    return Spec(provider, name, options)


def architecture(spec: str) -> str:
    """The name to record in a checkpoint: without options that only fetch weights.

    Raises:
        HotswapError: where the name is malformed, or names what a file may not ask for.
    """
    parsed = parse(spec)
    if parsed.is_factory:
        return str(parsed)
    options = {key: value for key, value in parsed.options.items() if key not in _WEIGHT_OPTIONS}
    parsed = replace(parsed, options=options)
    _check_untrusted(parsed)
    return str(parsed)


def build(spec: str, *, trusted: bool, initialise: bool = True) -> nn.Module:
    """Build a network by its name, in training mode, as its constructor leaves it.

    Args:
        spec: see the module.
        trusted: whether the user typed it. A name found in a file is not trusted: it must be a network of
            torchvision or timm, with plain options none of which fetches or reads anything, or nothing is imported.
        initialise: False leaves the weights of torchvision's and timm's networks as the memory was, for who is
            going to overwrite them or never looks: random numbers are most of the time that building takes.

    Raises:
        HotswapError: where the name is not known or not permitted, a package is missing, or building fails.
    """
    parsed = parse(spec)
    if not trusted:
        _check_untrusted(parsed)
    if parsed.is_factory:
        return _called(parsed, _factory(parsed), nullcontext())
    skipping = nullcontext() if initialise or parsed.brings_weights else _SkipRandomInit()
    constructor = _from_torchvision(parsed) if parsed.provider == TORCHVISION else _from_timm(parsed)
    return _called(parsed, constructor, skipping)


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, per channel, of the images (in 0..1) a network was trained on.

    timm's networks state them; for all others ImageNet's are given, which most use.
    """
    stated = getattr(model, "pretrained_cfg", None)
    if isinstance(stated, Mapping) and stated.get("mean") and stated.get("std"):
        return tuple(map(float, stated["mean"])), tuple(map(float, stated["std"]))
    return IMAGENET_MEAN, IMAGENET_STD


# --- names ------------------------------------------------------------------------------------------------


def _value(spec: str, key: str, text: str) -> Any:
    if text in ("True", "False", "None"):  # as text they would all be true
        json_word = {"True": "true", "False": "false", "None": "null"}[text]
        raise HotswapError(f"network {spec!r}: option {key} must be JSON, got {text!r}; write {key}={json_word}")
    try:
        value = json.loads(text, parse_constant=str)  # NaN and Infinity are no JSON: text
    except (ValueError, RecursionError):
        return text
    if not _is_plain(value):
        raise HotswapError(
            f"network {spec!r}: option {key} must be a number, text, true, false, null or a list of them"
        )
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


def _as_text(value: Any) -> str:
    """What `_value` reads back: text without quotes wherever it would not be taken for something else."""
    if isinstance(value, str) and "&" not in value:
        try:
            json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            return value
    return json.dumps(value, separators=(",", ":")).replace("&", "\\u0026")


def _check_untrusted(spec: Spec) -> None:
    if spec.is_factory:
        raise HotswapError(
            f"the architecture {str(spec)!r} is code of somebody's own, and a file may not choose what code runs; "
            "build the network yourself and pass it as model (on the command line: --model)"
        )
    if not _NAME[spec.provider].fullmatch(spec.name):
        raise HotswapError(f"a file may not ask for the network {str(spec)!r}; pass the network as model (--model)")
    for key, value in spec.options.items():
        texts = [text for text in _flat(value) if isinstance(text, str)]
        if _REFUSED_IN_FILES.search(key) or not all(map(_STRING_IN_FILES.fullmatch, texts)):
            raise HotswapError(
                f"a file may not ask for option {key}={value!r} of {spec.provider}:{spec.name}; "
                "build the network yourself and pass it as model (on the command line: --model)"
            )


def _flat(value: Any) -> list[Any]:
    return [x for item in value for x in _flat(item)] if isinstance(value, list) else [value]


# --- building ---------------------------------------------------------------------------------------------


def _from_torchvision(spec: Spec) -> Callable[..., Any]:
    models = _provider("torchvision.models")
    if spec.name not in (names := models.list_models()):
        raise HotswapError(f"torchvision has no network {spec.name!r}{closest(spec.name, names)}")
    builder = models.get_model_builder(spec.name)
    # Options of the user's override these; by default, segmentation and detection networks fetch a backbone.
    none = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    return functools.partial(builder, **none)


def _from_timm(spec: Spec) -> Callable[..., Any]:
    timm = _provider("timm")
    name = spec.name.partition(".")[0]
    if ":" not in name and not timm.is_model(name):  # hf-hub:owner/name is timm's to look up
        raise HotswapError(f"timm has no network {spec.name!r}{closest(spec.name, timm.list_models())}")
    return functools.partial(timm.create_model, spec.name)


def _provider(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:  # the last two: built for another version of torch
        package = name.partition(".")[0]
        raise HotswapError(f"{package} cannot be imported ({error}); pip install 'hotswap[zoo]'") from error


def _factory(spec: Spec) -> Callable[..., Any]:
    try:
        module = importlib.import_module(spec.provider)
    except ModuleNotFoundError as error:
        if error.name and f"{spec.provider}.".startswith(f"{error.name}."):
            raise HotswapError(
                f"network {str(spec)!r}: there is no module {error.name!r}; a network must be {FORMS}"
            ) from error
        raise HotswapError(f"network {str(spec)!r}: importing {spec.provider} failed ({one_line(error)})") from error
    except (Exception, SystemExit) as error:  # whatever a user's module does when imported
        raise HotswapError(f"network {str(spec)!r}: importing {spec.provider} failed ({one_line(error)})") from error
    found: Any = module
    for part in spec.name.split("."):
        if not hasattr(found, part):
            known = [name for name, value in vars(found).items() if callable(value)]
            where = "module" if isinstance(found, ModuleType) else "class"
            raise HotswapError(
                f"network {str(spec)!r}: {where} {found.__name__} has no {part!r}{closest(part, known)}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise HotswapError(
            f"network {str(spec)!r}: it must name a function that returns a network, got {type(found).__name__}"
        )
    result: Callable[..., Any] = found
    return result


def _called(spec: Spec, constructor: Callable[..., Any], around: AbstractContextManager[Any]) -> nn.Module:
    try:
        with around:
            model = constructor(**spec.options)
    except HotswapError:
        raise
    except (Exception, SystemExit) as error:  # whatever a network's constructor raises for options it does not like
        raise HotswapError(f"network {str(spec)!r} could not be built ({one_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise HotswapError(f"network {str(spec)!r} must be a torch.nn.Module, got {type(model).__name__}")
    return model


class _SkipRandomInit(TorchFunctionMode):
    """Leaves tensors as they are where `torch.nn.init` would fill them with random numbers.

    Only whole functions of `torch.nn.init` are passed over: some, like `trunc_normal_`, draw again and again until
    every number lies in a range, and would never end if what they call did nothing.
    """

    _FILLS = frozenset((nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
