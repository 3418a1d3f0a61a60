"""What a search has measured, kept in a file so that an interrupted one goes on."""

import hashlib
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

import hotswap
from hotswap.errors import HotswapError
from hotswap.files.atomic import PathLike, check_writable
from hotswap.searching.tasks import Measured

PLAIN = "plain"  # the key of the plain network
_FORMAT = 1


class Ledger:
    """Rows of numbers by candidate and image; with a file, each is appended to it at once.

    A file that was written for something else (`asked`) is begun anew; a last line that was cut off is left out.
    """

    def __init__(self, path: PathLike | None, asked: str) -> None:
        self._rows: dict[tuple[str, str], Measured] = {}
        self._file: IO[str] | None = None
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        check_writable(self.path)
        self._head = {"format": _FORMAT, "asked": asked}
        head, *lines = self._lines() or [{}]
        for line in lines if head == self._head else []:
            rows = {metric: np.array(row, dtype=np.float64) for metric, row in line["rows"].items()}
            self._rows[line["candidate"], line["image"]] = rows

    def get(self, candidate: str, image: str) -> Measured | None:
        """What was measured."""
        return self._rows.get((candidate, image))

    def put(self, candidate: str, image: str, rows: Measured) -> None:
        """Keep what was measured."""
        if self.path is not None and self._file is None:
            self._file = self._begun(self.path)
        self._rows[candidate, image] = rows
        self._append(candidate, image, rows)

    def _begun(self, path: Path) -> IO[str]:
        """The file, with what is known already, which leaves out a line that was cut off."""
        try:
            file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise HotswapError(f"cannot write {str(path)!r}: {error.strerror}") from error
        file.write(json.dumps(self._head) + "\n")
        self._file = file
        for (candidate, image), rows in self._rows.items():
            self._append(candidate, image, rows)
        return file

    def _append(self, candidate: str, image: str, rows: Measured) -> None:
        if self._file is not None:
            line = {"candidate": candidate, "image": image, "rows": {k: row.tolist() for k, row in rows.items()}}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self, *, done: bool) -> None:
        """Close the file, and remove it where the search is done."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if done and self.path is not None:
            self.path.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        if self.path is None or not self.path.exists():
            return []
        refusal = f"{str(self.path)!r} is no file that a search left to go on from; name another, or remove it"
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise HotswapError(f"cannot read {str(self.path)!r}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise HotswapError(refusal) from error
        lines: list[dict[str, Any]] = []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break  # cut off when it was written
        if text and not (lines and isinstance(lines[0], dict) and "asked" in lines[0]):
            raise HotswapError(refusal)
        return lines


def asked(model: nn.Module, *what: Any) -> str:
    """A digest of a network's weights and of everything else that results depend on."""
    digest = hashlib.sha256(repr((hotswap.__version__, type(model).__qualname__, what)).encode())
    for name, x in model.state_dict().items():
        digest.update(name.encode())
        digest.update(bytes_of(x))
    return digest.hexdigest()


def bytes_of(x: Tensor) -> bytes:
    """The numbers of a tensor as they are in memory."""
    flat = x.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()
