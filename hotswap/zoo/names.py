"""Names of networks, `provider:name` with `?key=value&key=value` after it: see `FORMS`.

Imports no torch, so that a name that is none is refused at once.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hotswap.errors import HotswapError
from hotswap.files import hub
from hotswap.files.atomic import is_folder

TORCHVISION, TIMM, SMP, HF = "torchvision", "timm", "smp", "hf"
TRANSFORMERS = "transformers"  # in files only: a class of transformers, whose configuration lies beside the name
FORMS = (
    "torchvision:NAME, timm:NAME, smp:NAME, hf:OWNER/NAME, a folder of a saved transformers model or "
    "package.module:factory, with ?key=value&key=value after it"
)

_MAX_LENGTH = 1000  # of a name; far above any real one
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
# The names that a file may give of each provider; timm's with a tag of weights.
IN_FILES = {
    TORCHVISION: re.compile(r"\w+"),
    TIMM: re.compile(r"\w+(\.\w+)?"),
    SMP: re.compile(r"\w+"),
    HF: None,
    TRANSFORMERS: re.compile(r"\w+"),
}


@dataclass(frozen=True)
class Spec:
    """The parts of a network's name; `str` joins them."""

    provider: str  # "torchvision", "timm", or the module of a factory
    name: str
    options: Mapping[str, Any]

    @property
    def is_factory(self) -> bool:
        """Whether it names a function of the user's own."""
        return self.provider not in IN_FILES

    @property
    def brings_weights(self) -> bool:
        """Whether an option asks for pretrained weights of the whole network."""
        return any(self.options.get(key) for key in ("weights", "pretrained"))

    @property
    def is_saved(self) -> bool:
        """Whether it is a saved model, with weights of its own."""
        return self.provider == HF or self.on_hub is not None

    @property
    def on_hub(self) -> hub.Address | None:
        """The address of a saved model on the hub; None for other networks."""
        if self.provider == TIMM and self.name.startswith(hub.PREFIX):
            return hub.parse(self.name)
        if self.provider == HF and not is_folder(self.name):
            return hub.parse(hub.PREFIX + self.name)
        return None

    def __str__(self) -> str:
        options = "&".join(f"{key}={_as_text(value)}" for key, value in self.options.items())
        return f"{self.provider}:{self.name}" + (f"?{options}" if options else "")


def parse(spec: str, *, typed: bool = True) -> Spec:
    """Split a network's name into its parts. Nothing is imported.

    Where the user `typed` it, a folder is taken for a saved model of transformers.

    Option values are JSON (`21`, `0.5`, `true`, `null`, `[1,2]`, `"text"`); what is no JSON is text.

    Raises:
        HotswapError: where it is not of one of the forms, or an option is malformed.
    """
    if not isinstance(spec, str):
        raise HotswapError(f"a network must be named by a string, got {spec!r}; it must be {FORMS}")
    if len(spec) > _MAX_LENGTH:
        raise HotswapError(f"a network's name must be at most {_MAX_LENGTH} characters long, got {len(spec)}")
    address, mark, query = spec.partition("?")
    provider, colon, name = address.partition(":")
    if typed and address and not colon and is_folder(address):
        provider, colon, name = HF, ":", address
    if not colon or not name or not _DOTTED.fullmatch(provider):
        raise HotswapError(f"network {spec!r} must be {FORMS}")
    if provider not in IN_FILES and not _DOTTED.fullmatch(name):
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


def _value(spec: str, key: str, text: str) -> Any:
    if text in ("True", "False", "None"):  # as text each would count as true
        json_word = {"True": "true", "False": "false", "None": "null"}[text]
        raise HotswapError(f"network {spec!r}: option {key} must be JSON, got {text!r}; write {key}={json_word}")
    try:
        value = json.loads(text, parse_constant=str)  # NaN and Infinity are no JSON: text
    except (ValueError, RecursionError):
        return text
    if not is_plain(value):
        raise HotswapError(
            f"network {spec!r}: option {key} must be a number, text, true, false, null or a list of them"
        )
    return value


def is_plain(value: Any) -> bool:
    """Whether an option can have this value."""
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


def _as_text(value: Any) -> str:
    """The inverse of `_value`: text without quotes unless it would be read as something else."""
    if isinstance(value, str) and "&" not in value:
        try:
            json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            return value
    return json.dumps(value, separators=(",", ":")).replace("&", "\\u0026")
