"""A method of a module that runs the code of graphs, kept by the instance."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hotswap.errors import HotswapError, replaced
from hotswap.network.derived import restore, subclass
from hotswap.surgery import install
from hotswap.surgery.code import Code
from hotswap.surgery.whole import Parts

CODE = "_hotswap_code"  # of a module, a plain attribute: by method the codes it was given, the last of which it runs


@dataclass(frozen=True)
class MethodCode:
    """The code of a rewritten method."""

    training: Code
    evaluation: Code
    opened: tuple[str, ...]  # modules whose code was traced, by path
    parts: Parts

    def run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The code of the module's mode.

        Raises:
            HotswapError: where modules inside are in another mode, or were replaced.
        """
        if not torch.compiler.is_compiling():
            self.parts.check_hooks(module)
            if not self.parts.are_in(module):
                records: Sequence[install.Record] = module.__dict__.get(install.RECORDS, ())
                if lost := [name for record in records for name in record.lost(module)]:
                    raise HotswapError(replaced(lost))
        if self.training is not self.evaluation:
            mixed = [path for path in self.opened if module.get_submodule(path).training is not module.training]
            if mixed:
                raise HotswapError(
                    f"{type(module).__name__} is in {'training' if module.training else 'evaluation'} mode and "
                    f"{mixed[0]} is not; it does different things in the two modes, and was rewritten for one mode "
                    "at a time"
                )
        return (self.training if module.training else self.evaluation).run(module, *args, **kwargs)


@functools.cache
def _rewritten(plain: Any, method: str) -> Any:
    """A class whose instances run the code that they were given for a method, else what they always did."""
    before = getattr(plain, method)

    @functools.wraps(before)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        codes: Sequence[MethodCode] = self.__dict__.get(CODE, {}).get(method, ())
        return codes[-1].run(self, *args, **kwargs) if codes else before(self, *args, **kwargs)

    return subclass(plain, (_rewritten, plain, method), **{method: run})


def rewrite(module: nn.Module, method: str, code: MethodCode) -> None:
    """Have a module's method run this code, in place. Undone by `undo`, the last first."""
    codes = module.__dict__.setdefault(CODE, {}).setdefault(method, [])
    if not codes:
        plain: Any = type(module)
        module.__class__ = _rewritten(plain, method)
    codes.append(code)


def undo(module: nn.Module, method: str) -> None:
    """Have a module's method run what it ran before it was rewritten last, in place."""
    codes: dict[str, list[MethodCode]] = module.__dict__[CODE]
    codes[method].pop()
    if not codes[method]:
        del codes[method]
        restore(module, _rewritten)
    if not codes:
        del module.__dict__[CODE]
