"""Commands and Python code that reproduce a report and its network."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LINE = 80  # letters of Python


@dataclass(frozen=True)
class Origin:
    """Where the network and the images of a report come from, and which options were given."""

    network: str  # its class
    checkpoint: str | None
    architecture: str | None  # of the plain network
    typed: bool  # whether the user gave it, because the checkpoint does not
    folder: str | None  # of images
    images: str  # where they are from, and how many were left out, in words
    output: str
    options: Mapping[str, Any]  # options other than the defaults, by their names in Python


@dataclass(frozen=True)
class Steps:
    """What to type to reproduce a report."""

    report: str | None  # the command; None where there is no file, or no folder
    convert: str | None  # the command that makes the network from its plain weights and the plan
    python: str


def steps(origin: Origin) -> Steps:
    """The steps that reproduce the report and the network."""
    return Steps(_report(origin), _convert(origin), _python(origin))


def _report(origin: Origin) -> str | None:
    if origin.checkpoint is None or origin.folder is None:
        return None
    words = ["hotswap", "report", origin.checkpoint, "--images", origin.folder]
    for name, value in origin.options.items():
        words += [f"--{name.replace('_', '-')}", _word(name, value)]
    if origin.typed:
        words += ["--model", str(origin.architecture)]
    return shlex.join([*words, "-o", origin.output])


def _word(name: str, value: Any) -> str:
    if name == "input_size":
        return "x".join(str(n) for n in value if n is not None)
    return ",".join(f"{x:g}" for x in value) if isinstance(value, tuple) else str(value)


def _convert(origin: Origin) -> str | None:
    if origin.architecture is None:
        return None
    words = ["hotswap", "convert", origin.architecture, "--weights", "WEIGHTS", "--plan", "plan.json"]
    return shlex.join([*words, "-o", origin.checkpoint or "swapped.safetensors"])


def _python(origin: Origin) -> str:
    options = dict(origin.options) | ({} if origin.checkpoint is None else {"checkpoint": origin.checkpoint})
    options |= {"architecture": origin.architecture} if origin.typed else {}
    given = [f"{name}={value!r}" for name, value in options.items()]
    images = "images" if origin.folder is None else repr(origin.folder)
    if origin.checkpoint is None:
        lines = [
            "import json",
            "",
            "import hotswap",
            "",
            f"plain = ...  # the plain {origin.network}, with its weights",
            'plan = hotswap.Plan.from_dict(json.load(open("plan.json")))',
            "model = hotswap.apply(plain, plan)",
        ]
    elif origin.typed or origin.architecture is None:
        lines = [
            "import hotswap",
            "",
            f"plain = ...  # a {origin.network}" + (f": {origin.architecture}" if origin.architecture else ""),
            f"model = hotswap.load({origin.checkpoint!r}, model=plain)",
        ]
    else:
        lines = ["import hotswap", "", f"model = hotswap.load({origin.checkpoint!r})"]
    if origin.folder is None:
        lines.append("images = ...  # the same inputs")
    return "\n".join([*lines, _call("hotswap.report", ["model", images, repr(origin.output), *given])])


def _call(function: str, arguments: list[str]) -> str:
    """A call as code, on several lines if it is long."""
    line = f"{function}({', '.join(arguments)})"
    return line if len(line) <= _LINE else "\n".join([f"{function}(", *(f"    {x}," for x in arguments), ")"])
