"""A network as the text of its program, so that it can be printed, shrunk and pasted into a test."""

import itertools
import linecache
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

_number = itertools.count()
MARK = re.compile(r"#\s*(\w+)\s*$")  # a comment that tells a line from all others, whatever is removed around it


@dataclass(frozen=True)
class Program:
    """Two files: the network's own, with a factory `network()`, and one of helpers that it may import as `parts`."""

    main: str
    parts: str
    dtype: str  # of weights and images
    size: tuple[int, int]  # of the example
    other: tuple[int, int]  # another size that the network is to run on
    batch: int = 2
    channels: int = 3
    # By class and attribute of a module: the attribute, or the mark of the line, that holds the activation after it;
    # None where there is none. A module that is not here must not be a guide that is taken after its activation.
    after: dict[str, str | None] = field(default_factory=dict, hash=False)

    def lines(self) -> int:
        """How long it is."""
        return len(self.main.splitlines()) + len(self.parts.splitlines())

    def with_main(self, main: str) -> "Program":
        """The same with another main file."""
        return replace(self, main=main)

    @contextmanager
    def loaded(self) -> Iterator["Loaded"]:
        """Both files as modules, whose source Python's tools find."""
        number = next(_number)
        names = {f"random_parts_{number}": self.parts, f"random_network_{number}": self.main}
        try:
            for name, text in names.items():
                file = f"/random_networks/{name}.py"
                text = text.replace("from parts import", f"from random_parts_{number} import")
                linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
                module = types.ModuleType(name)
                module.__file__ = file
                sys.modules[name] = module
                exec(compile(text, file, "exec"), module.__dict__)  # noqa: S102 (text that the generator wrote)
            yield Loaded(self, module)
        finally:
            for name in names:
                linecache.cache.pop(f"/random_networks/{name}.py", None)
                sys.modules.pop(name, None)


@dataclass(frozen=True)
class Loaded:
    """A program whose files are loaded."""

    program: Program
    module: types.ModuleType

    def network(self) -> nn.Module:
        """A new network in evaluation mode, always with the same weights."""
        torch.manual_seed(0)
        made: nn.Module = self.module.network()
        return made.to(getattr(torch, self.program.dtype)).eval()

    def image(self, size: tuple[int, int], batch: int | None = None, seed: int = 1) -> torch.Tensor:
        """Random numbers, always the same."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch or self.program.batch, self.program.channels, *size)
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(getattr(torch, self.program.dtype))

    def runs(self) -> bool:
        """Whether the plain network takes its example: the generator does not follow sizes to the last pixel."""
        try:
            with torch.no_grad():
                self.network()(self.image(self.program.size))
        except RuntimeError as error:
            if "greater than 0" in str(error) or "too small" in str(error):
                return False
            raise
        return True


def is_ours(file: str) -> bool:
    """Whether a file is one of a random program."""
    return file.startswith("/random_networks/")


def text_of_line(file: str, number: int) -> str:
    """The mark of a line, or else its text."""
    line = linecache.getline(file, number).strip()
    found = MARK.search(line)
    return found.group(1) if found else line
