"""One process at a time works in a folder."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from fxquant.errors import StorageError
from fxquant.streaming.held_folder import HeldFolder
from fxquant.streaming.processes import Process
from tests.processes import in_process


def test_a_second_one_is_told_who_holds_the_folder_and_since_when(tmp_path: Path) -> None:
    held = HeldFolder(tmp_path)
    holder = Process(**json.loads((tmp_path / "holder.json").read_text()))
    assert (holder.host, holder.pid) == (Process.this().host, os.getpid())
    with pytest.raises(StorageError) as caught:
        HeldFolder(tmp_path)
    assert str(caught.value) == (
        f"checkpoint {tmp_path}: process {os.getpid()} on {holder.host}, since {holder.since}, "
        "works in it: wait until it has ended, end it, or name another folder"
    )
    held.release()
    HeldFolder(tmp_path).release()


def hold_and_die(folder: Path) -> None:
    HeldFolder(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_folder_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    in_process(lambda: hold_and_die(tmp_path))
    assert json.loads((tmp_path / "holder.json").read_text())["pid"] != os.getpid()
    held = HeldFolder(tmp_path)
    assert json.loads((tmp_path / "holder.json").read_text())["pid"] == os.getpid()
    held.release()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fxquant.whole_files.fcntl.flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_dead_process_is_known_on_its_own_host_only(tmp_path: Path) -> None:
    in_process(lambda: hold_and_die(tmp_path))
    HeldFolder(tmp_path).release()  # taken over
    in_process(lambda: hold_and_die(tmp_path))
    path = tmp_path / "holder.json"
    elsewhere = {**json.loads(path.read_text()), "host": "elsewhere"}
    path.write_text(json.dumps(elsewhere))
    with pytest.raises(StorageError) as caught:
        HeldFolder(tmp_path)
    assert str(caught.value) == (
        f"checkpoint {tmp_path}: process {elsewhere['pid']} on elsewhere, since "
        f"{elsewhere['since']}, works in it, or was killed there: this file system has no locks "
        f"that would tell ({os.strerror(errno.ENOLCK)}). Wait until it has ended, name another "
        f"folder, or, if it has ended, delete {path}"
    )
    path.unlink()
    held = HeldFolder(tmp_path)
    with pytest.raises(StorageError, match=f"process {os.getpid()} on "):
        HeldFolder(tmp_path)
    held.release()
    HeldFolder(tmp_path).release()


def test_a_holder_that_cannot_be_written_down_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            HeldFolder(tmp_path)
    HeldFolder(tmp_path).release()
