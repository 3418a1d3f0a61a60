"""Uploads a network to the Hugging Face hub, for `hotswap.load("hf-hub:owner/name")`."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from hotswap.checkpoint.write import save
from hotswap.errors import HotswapError, one_line
from hotswap.files import hub, shards
from hotswap.files.atomic import atomic_write
from hotswap.measure.status import status
from hotswap.zoo import transformers

_CARD = """---
library_name: hotswap
tags:
- hotswap
- pixel-adaptive-convolution
---

# {name}

```
{swaps}
```

```python
import hotswap

model = hotswap.load("{address}"{argument})
```

`model.safetensors` holds the plain network's weights, under its own names; `hotswap.revert(model)` is that network.
"""
_NAME = hub.WEIGHTS[0]


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    architecture: str | None = None,
    message: str = "Upload a network with hotswap",
    private: bool | None = None,
    branch: str | None = None,
    max_shard_size: int | str = "5GB",
) -> str:
    """Put a network, swapped or plain, into a repository of the Hugging Face hub, as one commit.

    Written are `model.safetensors`, as `save` writes it, for networks of transformers their config.json, and, where
    there is none, a README.md that says what is swapped and how to load it. Weights that were there before go. Needs
    a token that may write: `hf auth login`, or HF_TOKEN.

    Args:
        model: the network.
        repository: owner/name; it is created where there is none.
        architecture: see `save`.
        message: the commit's.
        private: whether a repository that is created is; by default as the hub or the organisation has it.
        branch: where to put it, by default main; it is created, from main, where there is none.
        max_shard_size: see `save`.

    Returns:
        The address for `load`, with the commit.

    Raises:
        HotswapError: as `save`, before the hub is asked; or where the hub does not take it, which is then as it was.
    """
    address = hub.parse(f"{hub.PREFIX}{repository}" + ("" if branch is None else f"@{branch}"))
    if branch is None and address.revision is not None:
        raise HotswapError(f"a repository to push to must be OWNER/NAME, got {repository!r}; name a branch by branch")
    with _temporary_folder() as folder:
        save(model, folder / _NAME, architecture, max_shard_size=max_shard_size)
        if (recorded := transformers.recorded(model)) is not None:
            name, config = recorded
            _write(folder / transformers.CONFIG, json.dumps({"architectures": [name], **config}, indent=1))
        return str(_pushed(folder, address, message, private, _card(model, address, architecture or recorded)))


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        temporary = tempfile.TemporaryDirectory()
    except OSError as error:
        raise HotswapError(f"there is no place for temporary files ({one_line(error)}); set TMPDIR") from error
    with temporary as place:
        yield Path(place)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _pushed(folder: Path, address: hub.Address, message: str, private: bool | None, card: str) -> hub.Address:
    there = hub.files(address, private)
    if "README.md" not in there:
        _write(folder / "README.md", card)
    files = {path.name: path for path in folder.iterdir()}
    old = [name for name in there if (name in hub.WEIGHTS or shards.is_ours(name, _NAME)) and name not in files]
    return hub.commit(address, files, old, message)


def _card(model: nn.Module, address: hub.Address, known: object) -> str:
    return _CARD.format(
        name=address.repository.partition("/")[2],
        swaps=status(model),
        address=address,
        argument="" if known else ", model=the_plain_network",
    )
