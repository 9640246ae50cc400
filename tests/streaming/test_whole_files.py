"""A file appears whole or not at all."""

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from fxquant.streaming.whole_files import write_whole


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
    monkeypatch.setattr(os, "fsync", lambda _: named.append([p.name for p in tmp_path.iterdir()]))
    write_whole(tmp_path / "file", lambda file: file.write(b"x"))
    assert named == [[f"file.{os.getpid()}.tmp"], ["file"]]
