"""Models on the Hugging Face hub: `hf-hub:owner/name[@revision]`.

Only safetensors and JSON are fetched, into huggingface_hub's cache, and all files of a model from one commit. The hub
is where the environment variable HF_ENDPOINT says; HF_TOKEN, HF_HUB_OFFLINE and the cache's place are
huggingface_hub's own.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hotswap.errors import HotswapError, one_line
from hotswap.files import shards

PREFIX = "hf-hub:"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # names of saved weights, the likeliest first

NO_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"  # an environment variable that huggingface_hub reads when it is imported

_REPOSITORY = re.compile(r"\w[\w.\-]{0,95}/\w[\w.\-]{0,95}", re.ASCII)
_REVISION = re.compile(r"\w[\w.\-/]{0,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """A model's repository and revision."""

    repository: str  # owner/name
    revision: str | None = None  # a branch, a tag or a commit; None: main

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, whose files never change."""
        return self.revision is not None and bool(_COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Fetched:
    """A file of a model, in the cache."""

    path: Path  # in the cache
    address: Address  # with its commit


def is_address(name: object) -> bool:
    """Whether a name is an address on the hub."""
    return isinstance(name, str) and name.startswith(PREFIX)


def parse(address: str) -> Address:
    """Parse an address. Nothing is fetched.

    Raises:
        HotswapError: where it is none.
    """
    repository, at, revision = address.removeprefix(PREFIX).partition("@")
    if not is_address(address) or not _REPOSITORY.fullmatch(repository) or (at and not _REVISION.fullmatch(revision)):
        raise HotswapError(
            f"a model on the hub must be {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, got {address!r}"
        )
    return Address(repository, revision or None)


def fetch(address: Address, *names: str) -> Fetched:
    """Fetch the first of some files that a model has into the cache.

    Raises:
        HotswapError: where there is no such file, repository or revision, it may not be read, or the hub cannot be
            reached.
    """
    for name in names:
        if (fetched := fetch_if_there(address, name)) is not None:
            return fetched
    raise HotswapError(
        f"{address} must hold {' or '.join(names)}, and does not; only safetensors are read from the hub"
    )


def fetch_if_there(address: Address, name: str) -> Fetched | None:
    """Fetch an optional file of a model; None if there is no such file.

    Raises:
        HotswapError: as `fetch`, but where there is no such file.
    """
    package = _package()
    with _explained(address):
        try:
            path = _api().hf_hub_download(address.repository, name, revision=address.revision)
        except package.errors.LocalEntryNotFoundError:  # not in the cache, and no network
            kept = package.try_to_load_from_cache(address.repository, name, revision=address.revision)
            if kept is None or isinstance(kept, str):  # else the cache knows that the model has no such file
                raise
            return None
        except package.errors.EntryNotFoundError:
            return None
    return Fetched(Path(path), replace(address, revision=_commit(Path(path), address)))


def weights(address: Address) -> Fetched:
    """Fetch the weights of a model: a safetensors file, or an index with all its files.

    Raises:
        HotswapError: as `fetch`; and where it holds no safetensors, or its index names files that it may not name.
    """
    fetched = fetch(address, *WEIGHTS)
    if fetched.path.name.endswith(shards.INDEX):
        for name in shards.files_of(fetched.path):
            fetch(fetched.address, name)
    return fetched


def files(address: Address, private: bool | None) -> list[str]:
    """List the files on a repository's branch; repository and branch are created if they are missing.

    Raises:
        HotswapError: where the hub does not let it be written, or cannot be reached.
    """
    with _explained(address):
        api = _api()
        api.create_repo(address.repository, private=private, exist_ok=True)
        if address.revision is not None:
            api.create_branch(address.repository, branch=address.revision, exist_ok=True)
        return list(api.list_repo_files(address.repository, revision=address.revision))


def commit(address: Address, added: Mapping[str, Path], deleted: Iterable[str], message: str) -> Address:
    """Add and delete files on a repository's branch in one commit; returns its address.

    Raises:
        HotswapError: as `files`; nothing is changed then.
    """
    package = _package()
    operations = [package.CommitOperationAdd(name, str(path)) for name, path in added.items()]
    operations += [package.CommitOperationDelete(name) for name in deleted]
    with _explained(address):
        created = _api().create_commit(
            address.repository, operations, commit_message=message, revision=address.revision
        )
    return replace(address, revision=created.oid)


def _commit(path: Path, address: Address) -> str:
    """The commit of a file, from its path in the cache."""
    parts = path.parts
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""
    if not _COMMIT.fullmatch(commit):
        raise HotswapError(f"{address}: the hub does not say of which commit {path.name} is")
    return commit


@contextmanager
def _explained(address: Address) -> Iterator[None]:
    """Turn errors of a request into one line, and silence huggingface_hub."""
    errors, utils = _package().errors, _package().utils
    level, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    if bars and (os.environ.get(NO_BARS) or not sys.stderr.isatty()):
        utils.disable_progress_bars()
    try:
        yield
    except HotswapError:
        raise
    except errors.GatedRepoError as error:
        raise HotswapError(
            f"{address} is gated: ask for access on its page, then log in (`hf auth login`, or HF_TOKEN)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HotswapError(
            f"there is no {address} on the hub, or it is private: then log in (`hf auth login`, or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HotswapError(f"{address.repository} has no revision {address.revision!r} on the hub") from error
    except errors.HfHubHTTPError as error:
        denied = getattr(error.response, "status_code", None) in (401, 403)
        hint = "; log in (`hf auth login`, or HF_TOKEN) as somebody who may" if denied else ""
        raise HotswapError(f"the hub refuses {address} ({one_line(error)}){hint}") from error
    except errors.LocalEntryNotFoundError as error:
        raise HotswapError(
            f"{address} is not in the cache, and the hub cannot be reached (HF_HUB_OFFLINE, or no network)"
        ) from error
    except Exception as error:  # whatever a network, or a library for it, raises
        raise HotswapError(f"{address} cannot be reached ({one_line(error)}); is there a network?") from error
    finally:
        utils.logging.set_verbosity(level)
        if bars:
            utils.enable_progress_bars()


def _api() -> Any:
    return _package().HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="hotswap")


def _package() -> Any:
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise HotswapError(f"huggingface_hub cannot be imported ({error}); pip install 'hotswap[hub]'") from error
