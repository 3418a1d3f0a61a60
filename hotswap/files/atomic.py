"""Atomic writes: at any moment, even after a kill, a file is the old one or the whole new one."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hotswap.errors import HotswapError

PathLike = str | os.PathLike[str]


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Give a temporary file to write to; replace `path` by it in one step when the block ends.

    The temporary lies in the same folder, reaches the disk before it is renamed, and is removed if anything
    goes wrong. The new file has the permissions the umask asks for. Of a file with several hard links only the name
    `path` gets the new content.

        with atomic_write("out.json") as temporary:
            temporary.write_text(text)

    Raises:
        HotswapError: where `path` cannot be written, or the disk fills up; `path` is then as it was.
    """
    final = check_writable(path)
    temporary = final.parent / f".hotswap-{secrets.token_hex(8)}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        yield temporary
        temporary.chmod(mode)  # some writers replace the file
        _sync(temporary)
        temporary.replace(final)
    except BaseException as error:  # Ctrl-C too must leave nothing behind
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise HotswapError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
        raise
    # The file is in place. Some file systems cannot sync a folder, which is no failure.
    with suppress(OSError):
        _sync(final.parent)


def check_writable(path: PathLike) -> Path:
    """Check that `path` can be written, before long work. Nothing is created.

    Returns:
        The file that would be written: `path`, with symbolic links to its folder followed.

    Raises:
        HotswapError: where its folder is missing or not writable, it is something other than a file, or read-only. A
            symbolic link is refused too: the file that it leads to may be somebody else's, or have other names.
    """
    given = Path(path)
    _check_name(path, "write")
    try:
        final = Path(os.path.realpath(given.parent), given.name)
        folder, kind = _mode(final.parent, path), _mode(final, path)
    except ValueError as error:  # a null character, or one that no file system can hold
        raise HotswapError(f"cannot write {str(path)!r}: no file can have that name ({error})") from error
    if folder is None:
        raise HotswapError(f"cannot write {str(path)!r}: there is no folder {str(final.parent)!r}; create it first")
    if not stat.S_ISDIR(folder):
        raise HotswapError(f"cannot write {str(path)!r}: {str(final.parent)!r} is not a folder")
    if kind is not None and stat.S_ISLNK(kind):
        leads = os.fspath(final.readlink())
        raise HotswapError(
            f"cannot write {str(path)!r}: it is a link to {leads!r}; name that file itself, or remove the link"
        )
    if kind is not None and stat.S_ISDIR(kind):
        raise HotswapError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if kind is not None and not stat.S_ISREG(kind):  # renaming onto /dev/null would replace it
        raise HotswapError(f"cannot write {str(path)!r}: it is a device or a pipe, not a file")
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise HotswapError(f"cannot write {str(path)!r}: no permission to write in {str(final.parent)!r}")
    if kind is not None and not os.access(final, os.W_OK):  # renaming would replace it all the same
        raise HotswapError(f"cannot write {str(path)!r}: the file that is there is read-only; name another")
    return final


def check_readable(path: PathLike) -> Path:
    """Check that a file can be read, for clearer errors than a library gives.

    Returns:
        `path`.

    Raises:
        HotswapError: where it is missing, no regular file, empty, or not permitted.
    """
    _check_name(path, "read")
    try:
        status = Path(path).stat()
    except OSError as error:
        raise HotswapError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except ValueError as error:  # a null character, or one that no file system can hold
        raise HotswapError(f"cannot read {str(path)!r}: no file can have that name ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise HotswapError(f"cannot read {str(path)!r}: it is a folder; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise HotswapError(f"cannot read {str(path)!r}: it is a device or a pipe, not a file")
    if status.st_size == 0:
        raise HotswapError(f"cannot read {str(path)!r}: the file is empty; was it copied or downloaded to the end?")
    if not os.access(path, os.R_OK):
        raise HotswapError(f"cannot read {str(path)!r}: permission denied")
    return Path(path)


def read_text(path: PathLike, what: str, largest: int) -> str:
    """Read a small text file, in UTF-8.

    Args:
        path: the file.
        what: it must hold, for people, such as "a plan as JSON".
        largest: its size in bytes, at most.

    Raises:
        HotswapError: where it cannot be read, is larger, or no text.
    """
    file = check_readable(path)
    if (size := file.stat().st_size) > largest:
        raise HotswapError(f"{str(path)!r} must hold {what}, and has {size / 1e6:.3g} MB")
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise HotswapError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HotswapError(f"{str(path)!r} must hold {what}, and is no text") from error


def is_there(path: PathLike) -> bool:
    """Whether a path exists. Unlike `Path.exists` it never raises."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: PathLike) -> bool:
    """Whether a path is a regular file; never raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: PathLike) -> bool:
    """Whether a path is a folder; never raises."""
    return os.path.isdir(path)  # noqa: PTH112


def is_same_file(one: PathLike, other: PathLike) -> bool:
    """Whether two paths are, or would be once written, the same file."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return Path(one).samefile(other)  # hard links
    except OSError:
        return False


def _check_name(path: PathLike, what: str) -> None:
    """Refuse names that are not valid UTF-8, which libraries for weights do not take."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise HotswapError(f"cannot {what} {str(path)!r}: its name is no text in UTF-8; rename it") from error


def _mode(final: Path, path: PathLike) -> int | None:
    try:
        return final.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HotswapError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
