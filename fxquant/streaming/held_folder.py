"""A folder that one process works in at a time, and that says which."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from fxquant.errors import StorageError
from fxquant.streaming.processes import Process
from fxquant.whole_files import open_locked

_HOLDER = "holder.json"


class HeldFolder:
    """A folder, held until it is released or the process ends, however it ends.

    `holder.json` names the process, and is locked by it. Where a file system has no locks, as some
    that hosts share, the file alone tells: of a process on this host that has ended it is taken
    over; of one on another host it is an error, for nothing is known of that one.

    Args:
        folder: that exists.

    Raises:
        StorageError: another process holds it.
        OSError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / _HOLDER
        self._path.touch()
        self._lock = self._locked()
        try:
            self._path.write_text(json.dumps(asdict(Process.this()), indent=1))
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let others hold it."""
        with contextlib.suppress(OSError):  # it was deleted, or the disk is gone
            self._path.write_text("")
        if self._lock is not None:
            os.close(self._lock)

    def _locked(self) -> int | None:
        """Return the descriptor of the lock, None where there are no locks and nobody holds it."""
        try:
            return open_locked(self._path)
        except BlockingIOError as error:
            raise StorageError(
                f"checkpoint {self._folder}: {self._holder_and_since()} works in it: wait until it "
                "has ended, end it, or name another folder"
            ) from error
        except OSError as error:
            holder = self._holder()
            if holder is None or holder.has_ended():
                return None
            raise StorageError(
                f"checkpoint {self._folder}: {self._holder_and_since()} works in it, or was killed "
                f"there: this file system has no locks that would tell ({error.strerror}). Wait "
                f"until it has ended, name another folder, or, if it has ended, delete {self._path}"
            ) from error

    def _holder_and_since(self) -> str:
        holder = self._holder()
        return f"{holder}, since {holder.since}," if holder is not None else "another process"

    def _holder(self) -> Process | None:
        try:
            return Process(**json.loads(self._path.read_text()))
        except (OSError, TypeError, ValueError):  # nobody, or one who is just writing it
            return None
