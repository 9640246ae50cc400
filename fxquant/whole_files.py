"""Files that appear whole or not at all; and what killed processes left of them, swept.

What is not finished has a name of its own, `.fxquant-….tmp`, in the folder of what it will become,
and is locked by the process that writes it. A lock ends with its process, however that ends, so
none is ever stale: what nobody holds is deleted by the next that writes into the folder. Where a
file system has no locks, nothing is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX, _SUFFIX = ".fxquant-", ".tmp"
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your own space",
    errno.EFBIG: "name a disk that takes files so large",
    errno.EROFS: "name a folder on a disk that can be written to",
    errno.EACCES: "name a folder that you may write to",
    errno.ENOENT: "make the folder first",
    errno.ENOTDIR: "name a folder",
    errno.EISDIR: "name a file",
}


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file; when this returns, it is on the disk under the name `path`.

    It is written under another name, flushed to the disk, and renamed: whatever goes wrong, a file
    that was there before stays as it was.

    Raises:
        OSError: the file cannot be written; says what to do.
    """
    with _temporary(path.parent, lambda unused: unused.touch(exist_ok=False)) as unfinished:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        flush(path.parent)


def temporary_folder(parent: Path) -> contextlib.AbstractContextManager[Path]:
    """Give a folder in `parent`, for files that are to be renamed into it; then it is gone.

    Raises:
        OSError: it cannot be made, or a file in it cannot be written; says what to do.
    """
    return _temporary(parent, Path.mkdir)


@contextlib.contextmanager
def _temporary(parent: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Give the path of what `make` makes there, locked; then it is gone."""
    sweep(parent)
    try:
        path, descriptor = _made(parent, make)
        try:
            yield path
        finally:
            _remove(path)
            if descriptor is not None:
                os.close(descriptor)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        place = str(error.filename2 or parent)
        raise OSError(error.errno, f"{error.strerror}: {remedy}", place) from error


def _made(parent: Path, make: Callable[[Path], object]) -> tuple[Path, int | None]:
    """Return a new path and the descriptor of its lock, None where there are no locks."""
    while True:
        path = parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        make(path)
        try:
            descriptor = open_locked(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # another sweeps: it came between
        except OSError:
            return path, None
        if path.exists():
            return path, descriptor
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Delete what processes that were killed have left in `folder`, as far as that can be done."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process holds it, or has swept it
            descriptor = open_locked(path)
            try:
                _remove(path)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Put a file, or the names of a folder's files, on the disk; folders where they can be opened.

    Raises:
        OSError: it cannot be written.
    """
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_locked(path: Path) -> int:
    """Open a file or folder, lock it until it is closed, and return the descriptor.

    Raises:
        BlockingIOError: another has locked it.
        OSError: it cannot be opened, or the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        if fcntl is None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
