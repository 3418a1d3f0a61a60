"""What a search has measured, kept in a file so that an interrupted one goes on."""

import hashlib
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

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
        self.resumed = 0  # rows that were there already
        if self.path is None:
            return
        check_writable(self.path)
        head = {"format": _FORMAT, "asked": asked}
        lines = self._lines()
        try:
            if lines[:1] != [head]:
                self.path.write_text(json.dumps(head) + "\n", encoding="utf-8")
                lines = [head]
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise HotswapError(f"cannot write {str(self.path)!r}: {error.strerror}") from error
        for line in lines[1:]:
            rows = {metric: np.array(row, dtype=np.float64) for metric, row in line["rows"].items()}
            self._rows[line["candidate"], line["image"]] = rows
        self.resumed = len(self._rows)

    def get(self, candidate: str, image: str) -> Measured | None:
        """What was measured."""
        return self._rows.get((candidate, image))

    def put(self, candidate: str, image: str, rows: Measured) -> None:
        """Keep what was measured."""
        self._rows[candidate, image] = rows
        if self._file is not None:
            line = {"candidate": candidate, "image": image, "rows": {k: row.tolist() for k, row in rows.items()}}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self, *, done: bool) -> None:
        """Close the file, and remove it where the search is done."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            if done:
                self.path.unlink(missing_ok=True)

    def _lines(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        try:
            text = self.path.read_text(encoding="utf-8") if self.path is not None and self.path.exists() else ""
        except (OSError, UnicodeDecodeError):
            return []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return [line for line in lines if isinstance(line, dict)]


def asked(model: nn.Module, *what: Any) -> str:
    """A digest of a network's weights and of everything else that results depend on."""
    digest = hashlib.sha256(repr((type(model).__qualname__, what)).encode())
    for name, x in model.state_dict().items():
        digest.update(name.encode())
        digest.update(bytes_of(x))
    return digest.hexdigest()


def bytes_of(x: Tensor) -> bytes:
    """The numbers of a tensor as they are in memory."""
    flat = x.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()
