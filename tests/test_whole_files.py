"""A file appears whole or not at all."""

import os
import re
import resource
import signal
from pathlib import Path
from typing import BinaryIO

import pytest

from fxquant.whole_files import open_locked, sweep, temporary_folder, write_whole
from tests.processes import forked, in_process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_when_it_was_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", lambda file: file.write(b"one"))
    write_whole(tmp_path / "file", lambda file: file.write(b"other"))
    assert (tmp_path / "file").read_bytes() == b"other"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyboardInterrupt])
def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(
    error: type[BaseException], tmp_path: Path
) -> None:
    def half(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(error):
        write_whole(tmp_path / "file", half)
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_content_and_the_name_are_flushed_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda _: named.append(names(tmp_path)))
    write_whole(tmp_path / "file", lambda file: file.write(b"x"))
    assert [re.sub("[0-9a-f]{16}", "…", name) for [name] in named] == [".fxquant-….tmp", "file"]


def test_a_file_has_the_mode_that_any_new_file_has(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", lambda file: file.write(b"x"))
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_is_gone_with_all_that_was_not_renamed(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        (folder / "kept").write_bytes(b"x")
        (folder / "left").write_bytes(b"x")
        (folder / "kept").replace(tmp_path / "kept")
    assert names(tmp_path) == ["kept"]


def test_what_a_killed_process_left_is_swept_by_the_next_write(tmp_path: Path) -> None:
    def half(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def in_folder() -> None:
        with temporary_folder(tmp_path) as folder:
            half((folder / "model.onnx").open("wb"))

    for write in (lambda: write_whole(tmp_path / "model.fxq", half), in_folder):
        in_process(write)
        (left,) = names(tmp_path)
        assert left.startswith(".fxquant-")
        write_whole(tmp_path / "other", lambda file: file.write(b"x"))
        assert names(tmp_path) == ["other"]
        (tmp_path / "other").unlink()


def test_only_own_files_that_nobody_writes_are_swept(tmp_path: Path) -> None:
    theirs = ["model.fxq.tmp", ".fxquant-notes", "fxquant-1.tmp"]
    for name in theirs:
        (tmp_path / name).write_text("mine")
    with temporary_folder(tmp_path) as folder:
        (folder / "half").touch()
        write_whole(tmp_path / "a", lambda _: write_whole(tmp_path / "b", lambda _: None))
        assert names(folder) == ["half"]
    assert names(tmp_path) == sorted([*theirs, "a", "b"])


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("no/file", "[Errno 2] No such file or directory: make the folder first: '{}/no'"),
        ("plain/file", "[Errno 20] Not a directory: name a folder: '{}/plain'"),
        ("folder", "[Errno 21] Is a directory: name a file: '{}/folder'"),
    ],
)
def test_what_cannot_be_written_is_an_error_that_says_what_to_do(
    path: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch()
    with pytest.raises(OSError, match=f"^{re.escape(told.format(tmp_path))}$"):
        write_whole(tmp_path / path, lambda file: file.write(b"x"))
    assert names(tmp_path) == ["folder", "plain"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    def write_much() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_whole(tmp_path / "file", lambda file: file.write(b"x" * 100_000))
        except OSError as error:
            (tmp_path / "told").write_text(str(error))

    in_process(write_much)
    assert names(tmp_path) == ["told"]
    told = "[Errno 27] File too large: name a disk that takes files so large"
    assert (tmp_path / "told").read_text() == f"{told}: '{tmp_path}'"


def test_without_locks_files_are_written_and_nothing_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".fxquant-0.tmp").touch()
    monkeypatch.setattr("fxquant.whole_files.fcntl", None)
    write_whole(tmp_path / "file", lambda file: file.write(b"one"))
    assert names(tmp_path) == [".fxquant-0.tmp", "file"]


def test_one_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = iter([True])

    def late(path: Path) -> int:
        if next(unlucky, False):
            sweep(tmp_path)
        return open_locked(path)

    monkeypatch.setattr("fxquant.whole_files.open_locked", late)
    write_whole(tmp_path / "file", lambda file: file.write(b"one"))
    assert names(tmp_path) == ["file"]


def test_a_lock_holds_until_it_is_closed_or_its_process_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    descriptor = open_locked(path)
    with pytest.raises(BlockingIOError):
        open_locked(path)
    os.close(descriptor)
    os.waitpid(forked(lambda: open_locked(path)), 0)
    for each in (path, tmp_path):
        os.close(open_locked(each))
