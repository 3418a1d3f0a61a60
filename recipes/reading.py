"""Reads and checks recipe files; errors are one line that names the wrong key."""

import copy
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike, check_readable, is_there, read_text
from hotswap.network.names import closest
from recipes.config import EARLIER, Recipe

ALONE = ""  # the name of the one arm of a recipe without arms
_ARMS = "arms"
_LARGEST = 2**20  # bytes of a recipe
_LARGEST_INTEGER = 2**63
_MOST_VALUES = 100_000  # in a recipe, with aliases expanded
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # an arm's name is that of a folder
_MUST_BE = {
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
}


def find(path: PathLike) -> Path:
    """The file of a recipe: `path`, or for a bare name such as `quickstart`, the package's recipe of that name."""
    given = Path(path)
    if given.suffix or is_there(given) or len(given.parts) != 1:
        return check_readable(given)
    known = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.yaml"))}
    if given.name not in known:
        raise HotswapError(
            f"there is no recipe {given.name!r}{closest(given.name, known)}; name one of them or a file"
        )
    return known[given.name]


def read(path: PathLike, overrides: Iterable[str] = ()) -> dict[str, Recipe]:
    """The arms of a recipe, checked completely; a recipe without arms has the one arm `ALONE`.

    Args:
        path: see `find`.
        overrides: `key.key=value`, of the file, with the value in YAML; a number is a place in a list.

    Raises:
        HotswapError: where it cannot be read, or says what a recipe cannot say.
    """
    content = contents(find(path))
    for override in overrides:
        _override(content, override)
    arms = content.pop(_ARMS, None)
    if arms is None:
        return {ALONE: check(content, str(path))}
    if not isinstance(arms, dict) or not arms:
        raise HotswapError(f"{path}: {_ARMS} must be a mapping from names to what they change, got {_shown(arms)}")
    recipes: dict[str, Recipe] = {}
    for name, changes in arms.items():
        where = f"{path}: {_ARMS}.{name}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise HotswapError(f"{where}: an arm's name is that of a folder: letters, digits, '_', '-' and '.'")
        if not isinstance(changes, dict | None):
            raise HotswapError(f"{where} must be a mapping of what it changes, got {_shown(changes)}")
        recipes[name] = check(merged(content, changes or {}), f"{path} (arm {name})")
        _check_earlier(recipes[name], [*recipes][:-1], where)
    return recipes


def contents(path: PathLike) -> dict[str, Any]:
    """The content of a YAML file of keys and values. No code can be named in it."""
    text = read_text(path, "a recipe as YAML", _LARGEST)
    content = _from_yaml(text, f"{str(path)!r} must hold a recipe as YAML")
    if not isinstance(content, dict):
        raise HotswapError(f"{str(path)!r} must hold a recipe, that is keys and values, got {_shown(content)}")
    return content


def arm(recipes: Mapping[str, Recipe], name: str | None) -> Recipe:
    """Choose an arm by its name; by default the last."""
    if name is None:
        return list(recipes.values())[-1]
    if name not in recipes:
        raise HotswapError(
            f"there is no arm {name!r}{closest(name, recipes)}; there are: {', '.join(recipes) or 'none'}"
        )
    return recipes[name]


def check(content: Mapping[str, Any], where: str) -> Recipe:
    """Validate plain values as a recipe.

    Raises:
        HotswapError: naming `where`, the first key that is wrong, and what it must be.
    """
    try:
        # As JSON, because that is strict about types, yet takes a list for a tuple.
        return Recipe.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise HotswapError(f"{where}: {_explained(error, content)}") from None


def _check_earlier(recipe: Recipe, earlier: Sequence[str], where: str) -> None:
    checkpoint = recipe.model.checkpoint or ""
    if checkpoint.startswith(EARLIER) and (name := checkpoint.removeprefix(EARLIER)) not in earlier:
        raise HotswapError(
            f"{where}: model.checkpoint must name an earlier arm ({', '.join(earlier) or 'there is none'}), "
            f"got {name!r}"
        )


# --- YAML -------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads 1e-4 as a number, as YAML 1.2 does; refuses keys that are repeated or are not text."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _written_out(node, {}) > _MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"written out, it would hold more than {_MOST_VALUES:,} values")
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if abs(value) > _LARGEST_INTEGER:  # Python would not even print it
            raise yaml.MarkedYAMLError(problem="a whole number is too large", problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"a key must be text, got {_shown(key)}", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {_shown(key)} is there twice", problem_mark=node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values in a document with all aliases (`*name`) expanded; infinite if one contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        nodes = [x for item in inner for x in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_written_out(x, known) for x in nodes)
    return known[id(node)]


def _from_yaml(text: str, wanted: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)
    except RecursionError as error:
        raise HotswapError(f"{wanted}: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: invalid dates and numbers
        raise HotswapError(f"{wanted}: {' '.join(str(error).split())[:300]}") from error


def assignment(text: str) -> tuple[str, Any]:
    """Key and value of `key=value`, the value in YAML.

    Raises:
        HotswapError: where it is none.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise HotswapError(f"--set must be key=value, such as optimiser.lr=1e-4, got {text!r}")
    return key, _from_yaml(value, f"--set {text!r}: the value must be YAML")


def _override(content: dict[str, Any], override: str) -> None:
    key, value = assignment(override)
    *path, last = key.split(".")
    place: Any = content
    for part in path:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[_index(place, part, override)]
    if isinstance(place, dict):
        place[last] = value
    else:
        place[_index(place, last, override)] = value


def _index(place: Any, part: str, override: str) -> int:
    if not isinstance(place, list):
        raise HotswapError(f"--set {override!r}: there is no key {part!r} in {_shown(place)}")
    if not part.isdecimal() or int(part) >= len(place):
        raise HotswapError(f"--set {override!r}: {part!r} must be a place in a list of {len(place)}, from 0")
    return int(part)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings, nested ones too; other values are replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


# --- what is wrong ----------------------------------------------------------------------------------------


def _explained(error: ValidationError, content: Any) -> str:
    errors = error.errors()
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")  # a misspelt key also leaves one missing
    path = _path(first["loc"], content, first["type"])
    key = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        known = list(_model_of(first["loc"]).model_fields)
        return f"there is no key {key!r}{closest(str(path[-1]), known)}; known: {', '.join(known)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "union_tag_not_found":
        return f"{key}.name is missing"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    wanted = []
    for other in errors:
        if _path(other["loc"], content, other["type"]) == path:
            text = _MUST_BE.get(other["type"], other["msg"].removeprefix("Input should be "))
            if other["type"] == "union_tag_invalid":
                text, key = f"one of {other['ctx']['expected_tags']}", f"{key}.name"
            wanted.append(text)
    value = first["ctx"]["tag"] if first["type"] == "union_tag_invalid" else first["input"]
    near = closest(str(value), re.findall(r"'(\w+)'", " ".join(wanted)))
    return f"{key or 'it'} must be {' or '.join(dict.fromkeys(wanted))}, got {_shown(value)}{near}"


def _path(loc: Sequence[str | int], content: Any, kind: str) -> tuple[str | int, ...]:
    """The path of keys to a value, without the names that pydantic adds for branches of a union."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        known = isinstance(content, Mapping) and part in content
        if known or (isinstance(content, list) and isinstance(part, int) and part < len(content)):
            path.append(part)
            content = content[part]
        elif kind == "missing" and index == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _model_of(loc: Sequence[str | int]) -> type[BaseModel]:
    """The model of the part of a recipe at a location."""
    choices: list[type[BaseModel]] = [Recipe]
    for part in loc[:-1]:
        named = [
            c for c in choices if part in typing.get_args(getattr(c.model_fields.get("name"), "annotation", None))
        ]
        if len(choices) > 1:
            choices = named
        elif isinstance(part, str):
            choices = _models_in(choices[0].model_fields[part].annotation)
    return choices[0]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
