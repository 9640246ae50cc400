"""A folder of finished layers: whole or not at all, and of one run only."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fxquant import StorageError, TensorSpec
from fxquant.streaming.checkpoint import Checkpoint
from fxquant.streaming.identity import digest

IDENTITY = {"model": "m1", "recipe": "r1", "data": "d1", "ranks": "1"}
STATE: dict[str, Any] = {
    "integers": torch.arange(-50, 50, dtype=torch.int8).reshape(4, 25),
    "sqnr": float("inf"),
    "rounding": {"steps": 10, "seconds": 0.5, "error_nearest": 0.25, "error_learned": 0.125},
}


def assert_state(loaded: dict[str, Any] | None) -> None:
    assert loaded is not None
    assert torch.equal(loaded["integers"], STATE["integers"])
    assert loaded["integers"].dtype == torch.int8
    assert {**loaded, "integers": 0} == {**STATE, "integers": 0}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_layers(checkpoint: Checkpoint) -> None:
    assert_state(checkpoint.load(0, "conv1"))
    assert checkpoint.load(1, "blocks/0") == {"sqnr": 1.0}
    assert checkpoint.load(1, "conv1") is None
    assert checkpoint.load(2, "conv1") is None


def test_a_saved_layer_is_loaded_by_the_next_process(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with Checkpoint(folder, IDENTITY) as checkpoint:
        assert checkpoint.load(0, "conv1") is None
        checkpoint.save(0, "conv1", STATE)
        checkpoint.save(1, "blocks/0", {"sqnr": 1.0})
        assert_layers(checkpoint)
    with Checkpoint(str(folder), IDENTITY) as again:
        assert_layers(again)
    assert names(folder) == ["0000_conv1.pt", "0001_blocks_0.pt", "holder.json", "identity.json"]


def test_a_layer_may_be_saved_again(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, IDENTITY)
    checkpoint.save(0, "fc", {"sqnr": 1.0})
    checkpoint.save(0, "fc", STATE)
    assert_state(checkpoint.load(0, "fc"))


def test_a_long_name_makes_a_file(tmp_path: Path) -> None:
    name = ".".join(["encoder"] * 60)
    checkpoint = Checkpoint(tmp_path, IDENTITY)
    checkpoint.save(7, name, STATE)
    assert_state(checkpoint.load(7, name))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("model", "the model is another"),
        ("recipe", "the recipe is another"),
        ("data", "the calibration data is another"),
        ("ranks", "the number of ranks is another"),
    ],
)
@pytest.mark.parametrize("writes", [True, False])
def test_refuses_a_folder_of_something_else(
    tmp_path: Path, part: str, message: str, writes: bool
) -> None:
    with Checkpoint(tmp_path, IDENTITY) as checkpoint:
        checkpoint.save(0, "fc", STATE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StorageError) as caught:
        Checkpoint(tmp_path, IDENTITY | {part: "x"}, writes=writes)
    assert str(caught.value) == (
        f"checkpoint {tmp_path}: {message} than the one it was written for: name another folder, "
        "or delete this one to start anew"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_refuses_a_folder_of_another_version(tmp_path: Path) -> None:
    Checkpoint(tmp_path, IDENTITY).close()
    path = tmp_path / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "0"}))
    with pytest.raises(StorageError, match="it was written by another version of fxquant"):
        Checkpoint(tmp_path, IDENTITY)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3"])
def test_refuses_a_folder_whose_identity_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(StorageError, match=f"^checkpoint {tmp_path}: "):
        Checkpoint(tmp_path, IDENTITY)


@pytest.mark.parametrize("below", ["", "below"])
def test_refuses_a_file_in_place_of_the_folder(tmp_path: Path, below: str) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(StorageError, match=f"^checkpoint {path / below}: cannot be used: "):
        Checkpoint(path / below, IDENTITY)
    assert path.read_text() == "mine"


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    data = content.index(STATE["integers"].numpy().tobytes())
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "zeros", bytes(len(content))
    yield "one byte", content[: data + 9] + bytes([content[data + 9] ^ 0xFF]) + content[data + 10 :]


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "one byte"])
def test_a_damaged_layer_is_an_error_that_tells_what_to_delete(tmp_path: Path, damage: str) -> None:
    checkpoint = Checkpoint(tmp_path, IDENTITY)
    checkpoint.save(3, "fc", STATE)
    path = tmp_path / "0003_fc.pt"
    path.write_bytes(dict(damages(path.read_bytes()))[damage])
    with pytest.raises(StorageError, match=r"Delete it to do this layer again$") as caught:
        checkpoint.load(3, "fc")
    assert str(caught.value).startswith(f"checkpoint {path}: cannot be read: ")


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, IDENTITY)
    torch.save(torch.ones(2), tmp_path / "0003_fc.pt")
    with pytest.raises(StorageError, match=r"Delete it to do this layer again$"):
        checkpoint.load(3, "fc")


def test_half_written_files_are_ignored_and_replaced(tmp_path: Path) -> None:
    for name in ("identity.tmp", "0000_fc.tmp"):
        (tmp_path / name).write_bytes(b"half")
    checkpoint = Checkpoint(tmp_path, IDENTITY)
    assert checkpoint.load(0, "fc") is None
    checkpoint.save(0, "fc", STATE)
    assert_state(checkpoint.load(0, "fc"))
    assert names(tmp_path) == ["0000_fc.pt", "holder.json", "identity.json"]


def test_a_process_that_does_not_write_reads_only(tmp_path: Path) -> None:
    reader = Checkpoint(tmp_path / "folder", IDENTITY, writes=False)
    reader.save(0, "fc", STATE)
    assert reader.load(0, "fc") is None
    assert names(tmp_path) == []
    Checkpoint(tmp_path / "folder", IDENTITY).save(0, "fc", STATE)
    assert_state(reader.load(0, "fc"))


def test_a_full_disk_keeps_the_finished_layers_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    checkpoint = Checkpoint(tmp_path, IDENTITY)
    checkpoint.save(0, "conv", STATE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError) as caught:
            checkpoint.save(1, "fc", STATE)
    assert str(caught.value) == (
        f"checkpoint {tmp_path / '0001_fc.pt'}: cannot be written: [Errno 28] No space left on "
        f"device: free some space: '{tmp_path}'. The layers before it are kept: start again with "
        "the same folder"
    )
    assert names(tmp_path) == ["0000_conv.pt", "holder.json", "identity.json"]
    assert_state(checkpoint.load(0, "conv"))
    checkpoint.save(1, "fc", STATE)  # there is room again
    assert_state(checkpoint.load(1, "fc"))


def test_two_processes_are_not_in_one_folder(tmp_path: Path) -> None:
    with Checkpoint(tmp_path, IDENTITY) as checkpoint:
        with pytest.raises(StorageError, match=f"process {os.getpid()} .* works in it: wait"):
            Checkpoint(tmp_path, IDENTITY)
        Checkpoint(tmp_path, IDENTITY, writes=False)  # another rank of the same run
        checkpoint.save(0, "fc", STATE)
    with Checkpoint(tmp_path, IDENTITY) as other:
        assert_state(other.load(0, "fc"))


def test_a_refused_folder_is_free_for_others(tmp_path: Path) -> None:
    for identity in (IDENTITY, IDENTITY | {"model": "x"}, IDENTITY):
        with contextlib.suppress(StorageError):
            Checkpoint(tmp_path, identity).close()
    with pytest.raises(StorageError, match="the model is another"):
        Checkpoint(tmp_path, IDENTITY | {"model": "x"})


def test_a_folder_that_takes_no_identity_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot be used: .*No space left on device"):
        Checkpoint(tmp_path, IDENTITY)


def test_a_layer_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noted(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            events.append(event)
            return function(*args)

        return call

    checkpoint = Checkpoint(tmp_path, IDENTITY)
    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
    monkeypatch.setattr(Path, "replace", noted("name", Path.replace))
    checkpoint.save(0, "fc", STATE)
    assert events[:2] == ["sync", "name"]


X = torch.arange(6.0)
LONG = torch.zeros(5000)
DIFFERENT: dict[str, tuple[list[Any], list[Any]]] = {
    "values": ([X], [X + 1e-6]),
    "sign of zero": ([torch.zeros(2)], [-torch.zeros(2)]),
    "dtypes": ([torch.zeros(2, dtype=torch.int32)], [torch.zeros(2)]),
    "halves": ([torch.ones(2, dtype=torch.float16)], [torch.ones(2, dtype=torch.bfloat16)]),
    "shapes": ([X], [X.reshape(2, 3)]),
    "empty shapes": ([torch.empty(0, 2)], [torch.empty(0, 3)]),
    "order": ([X, X + 1], [X + 1, X]),
    "strides": ([X.reshape(2, 3).T], [X.reshape(3, 2)]),
    "number": ([X], [X, X]),
    "none": ([X], [X, None]),
    "text": (["ab", "c"], ["a", "bc"]),
    "numbers": ([1, 23], [12, 3]),
    "list and items": ([[X, X]], [X, X]),
    "nested": ([(torch.ones(2), 1)], [(torch.ones(2) + 1e-6, 1)]),
    "nested, long": ([{"x": LONG}], [{"x": LONG.scatter(0, torch.tensor([2500]), 1.0)}]),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_digests_of_different_values_differ(one: list[Any], other: list[Any]) -> None:
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([X, "text", None, 3], [X.clone(), "text", None, 3]),
        ([X.reshape(2, 3).T], [X.reshape(2, 3).T.contiguous()]),
        ([torch.nn.Parameter(X)], [X]),
        ([torch.tensor(True), torch.ones(2, dtype=torch.bfloat16)],
         [torch.tensor(True), torch.ones(2, dtype=torch.bfloat16)]),
    ],
    ids=["copies", "strides", "parameter", "dtypes"],
)  # fmt: skip
def test_digests_of_equal_values_are_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert digest(one) == digest(iter(other))
    assert len(digest(one)) == 32


def test_a_digest_tells_fields_apart_that_a_repr_leaves_out() -> None:
    specs = [TensorSpec(), TensorSpec(clip="report")]
    assert len({digest([spec]) for spec in specs}) == 2

    @dataclass(repr=False)
    class Silent:
        value: int

        def __repr__(self) -> str:
            return "Silent()"

    assert digest([Silent(1)]) == digest([Silent(1)]) != digest([Silent(2)])
