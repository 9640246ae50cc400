"""Finished layers of a long run in a folder, so that the run can be killed and go on.

A folder belongs to one model, recipe and data set: `identity.json` holds a digest of each. One
process at a time works in it (`fxquant.streaming.held_folder`). A layer's file appears whole or not
at all (`fxquant.whole_files`).
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from fxquant.errors import StorageError
from fxquant.streaming.held_folder import HeldFolder
from fxquant.streaming.identity import digest
from fxquant.whole_files import write_whole

_VERSION = 1
_REMEDIES = {
    "version": "it was written by another version of fxquant",
    "model": "the model is another",
    "recipe": "the recipe is another",
    "data": "the calibration data is another",
    "ranks": "the number of ranks is another",
}


class Checkpoint:
    """A folder of finished layers, as a context: behind it other processes may use the folder.

    Args:
        directory: made if it is not there.
        identity: digests of "model", "recipe", "data" and "ranks".
        writes: whether this process writes; the others only read.

    Raises:
        StorageError: the folder belongs to something else, another process works in it, or it
            cannot be used.
    """

    def __init__(
        self, directory: str | os.PathLike[str], identity: dict[str, str], *, writes: bool = True
    ) -> None:
        self.directory = Path(directory)
        self._writes = writes
        identity = {"version": str(_VERSION), **identity}
        self._held: HeldFolder | None = None
        try:
            if writes:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._held = HeldFolder(self.directory)
                for unfinished in self.directory.glob("*.tmp"):  # of a process that was killed
                    unfinished.unlink()
            self._check(identity)
        except (OSError, ValueError) as error:
            self.close()
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"checkpoint {self.directory}: cannot be used: {error}: name another folder"
            ) from error

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def _check(self, identity: dict[str, str]) -> None:
        """Refuse a folder of something else; mark a new one."""
        path = self.directory / "identity.json"
        found = json.loads(path.read_text()) if path.exists() else None
        if found is None:
            if self._writes:
                write_whole(path, lambda file: file.write(json.dumps(identity, indent=1).encode()))
            return
        for part, known in identity.items():
            if not isinstance(found, dict) or found.get(part) != known:
                raise StorageError(
                    f"checkpoint {self.directory}: {_REMEDIES[part]} than the one it was written "
                    "for: name another folder, or delete this one to start anew"
                )

    def load(self, number: int, name: str) -> dict[str, Any] | None:
        """Return what was saved of layer `number`, None if it is not finished."""
        path = self._path(number, name)
        if not path.exists():
            return None
        reason = "it is not what was written"
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # a damaged file may fail in any way
            saved, reason = None, str(error)
        if isinstance(saved, dict) and saved.get("digest") == digest([saved.get("state")]):
            state = saved["state"]
            assert isinstance(state, dict)
            return state
        raise StorageError(
            f"checkpoint {path}: cannot be read: {reason}. Delete it to do this layer again"
        )

    def save(self, number: int, name: str, state: dict[str, Any]) -> None:
        """Write layer `number`; when this returns, it is on the disk."""
        if not self._writes:
            return
        path = self._path(number, name)
        content = io.BytesIO()  # written to a full disk, torch.save would raise what tells nothing
        torch.save({"state": state, "digest": digest([state])}, content)
        try:
            write_whole(path, lambda file: file.write(content.getbuffer()))
        except OSError as error:
            raise StorageError(
                f"checkpoint {path}: cannot be written: {error}. The layers before it are kept: "
                "start again with the same folder"
            ) from error

    def _path(self, number: int, name: str) -> Path:
        return self.directory / f"{number:04d}_{name[:100].replace('/', '_')}.pt"
