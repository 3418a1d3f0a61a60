"""The state of a run on disk: one file, written atomically, from which the run resumes exactly."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter

from hotswap.checkpoint.read import load_torch
from hotswap.errors import HotswapError, one_line
from hotswap.files.atomic import atomic_write, check_readable
from hotswap.targets.plan import Plan
from recipes.config import Recipe

STATE, BEST, LAST, RESULT = "state.pt", "best.safetensors", "last.safetensors", "result.json"
_FORMAT = 1


@dataclass
class Record:
    """The results of a run so far."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per measurement: step, loss, metrics
    best: dict[str, Any] | None = None  # the entry of the best
    training_seconds: float = 0.0
    measuring_seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """Everything a run needs to resume."""

    recipe: Recipe
    plan: Plan | None
    trainer: dict[str, Any]  # what `Trainer.state` gave
    record: Record


def write(path: Path, state: State) -> None:
    """Replace the state file in one step.

    Raises:
        HotswapError: where it cannot be written, on a full disk for one; the one before is then still there.
    """
    known = {
        "format": _FORMAT,
        "recipe": state.recipe.model_dump(mode="json"),
        "plan": None if state.plan is None else state.plan.to_dict(),
        "record": asdict(state.record),
    }
    with atomic_write(path) as temporary:
        try:
            with temporary.open("wb") as stream:
                torch.save({"hotswap_run": json.dumps(known), "trainer": state.trainer}, stream)
        except RuntimeError as error:  # torch's, raised while it handles the error of a full disk
            raise HotswapError(f"cannot write {str(path)!r}: {error.__context__ or error}") from error


def read(path: Path) -> State:
    """Read a state file, without running code in it."""
    content = load_torch(check_readable(path), mapped=True)
    try:
        return _state(content)
    except HotswapError as error:
        raise HotswapError(f"cannot read {str(path)!r}: {error}") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:  # pydantic's are ValueErrors
        raise HotswapError(
            f"cannot read {str(path)!r}: it is no state of a run, or damaged ({one_line(error)})"
        ) from error


def _state(content: Any) -> State:
    plain: dict[str, Any] = dict(dict.items(content))
    known = json.loads(plain["hotswap_run"])
    if known["format"] != _FORMAT:
        raise HotswapError("it was written by another version of hotswap")
    plan = None if known["plan"] is None else Plan.from_dict(known["plan"])
    recipe = Recipe.model_validate_json(json.dumps(known["recipe"]), strict=True)
    record = TypeAdapter(Record).validate_json(json.dumps(known["record"]), strict=True)
    return State(recipe, plan, dict(plain["trainer"]), record)


def check_same(before: Recipe, now: Recipe, where: Path) -> None:
    """Refuse to resume with another recipe; the message names the first key that differs."""
    if before != now:
        old, new = (_flat(recipe.model_dump(mode="json")) for recipe in (before, now))
        key = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
        raise HotswapError(
            f"the run in {str(where)!r} was begun with {key} {old.get(key)!r}, and the recipe now says "
            f"{new.get(key)!r}; put it back, or name another folder"
        )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not items:
        return {key: value}
    return {k: v for name, inner in items for k, v in _flat(inner, f"{key}.{name}" if key else str(name)).items()}
