"""A file that is damaged, foreign or of another version is an error that says what is wrong."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fxquant
from benchmarks.storage_fuzz import Parts, put_together, take_apart
from fxquant import StorageError
from fxquant.storage import container


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a small model."""
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model = fxquant.quantize(net, [torch.randn(8, 4)], fxquant.Recipe.minmax(weight_bits=4))
    fxquant.save(model, tmp_path / "model.fxq")
    return tmp_path / "model.fxq"


def error_of(path: Path) -> str:
    """Return what loading a file complains of, without the file's name, which it starts with."""
    with pytest.raises(StorageError) as caught:
        fxquant.load(path)
    assert str(caught.value).startswith(f"load: {path}: ")
    return str(caught.value).removeprefix(f"load: {path}: ")


def rewrite(path: Path, change: Callable[[Parts], object]) -> None:
    parts = take_apart(path.read_bytes())
    change(parts)
    path.write_bytes(put_together(parts))


def test_any_tool_reads_the_tensors_by_their_names(path: Path) -> None:
    tensors, model = load_file(path), fxquant.load(path)
    assert sorted(tensors) == [
        "0.bias", "0.weight_packed", "0.weight_scale", "2.bias", "2.weight_packed",
        "2.weight_scale",
    ]  # fmt: skip
    assert torch.equal(tensors["0.weight_scale"], model.get_buffer("0.weight_scale"))


def test_the_metadata_say_what_wrote_it_and_the_digest_of_the_file(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()["fxquant"])
    blank = path.read_bytes().replace(known["sha256"].encode(), b"0" * 64)
    assert known["sha256"] == hashlib.sha256(blank).hexdigest()
    assert (known["version"], known["torch"], known["custom"]) == (3, str(torch.__version__), [])
    assert container.VERSION == 3


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nothing") == "there is no such file"


def test_foreign_files_are_named(path: Path) -> None:
    start = "it is not an fxquant file: "
    torch.save({"a": torch.ones(2)}, path)
    assert error_of(path) == f"{start}a zip archive, as torch.save writes: try torch.load"
    path.write_bytes(pickle.dumps({}))
    assert error_of(path) == f"{start}a pickle: try torch.load"
    with path.open("wb") as file:
        np.save(file, np.ones(2))
    assert error_of(path) == f"{start}an array of numpy"
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.ones(2)}, path, metadata)
        assert error_of(path) == (
            f"{start}safetensors of something else: try safetensors.torch.load_file"
        )
    path.write_bytes(b"hello")
    assert error_of(path) == f"{start}it starts with b'hello'"
    path.write_bytes(b"")
    assert error_of(path) == f"{start}it is empty"


def some_places(content: bytes) -> list[int]:
    """Return all places in the start of a file, and every thirtieth behind it."""
    return [*range(1, 20), *range(20, len(content), 30), len(content) - 1]


def test_a_file_cut_off_anywhere_is_an_error(path: Path) -> None:
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for size in some_places(content):
        path.write_bytes(content[:size])
        error = error_of(path)
        if size >= header:
            assert error == f"it is cut off: {size} bytes of {len(content)}"
        elif size >= 9:
            assert error == f"it is cut off: {size} bytes, where {header} are a start"


def test_any_changed_byte_is_an_error(path: Path) -> None:
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for place in (0, *some_places(content)):
        altered = bytearray(content)
        altered[place] ^= 0x01
        path.write_bytes(altered)
        error = error_of(path)
        if place >= header:
            assert error.startswith("it was altered: its SHA-256 is ")


def test_bytes_behind_the_end_are_an_error(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    assert error_of(path) == f"it was altered: {size + 1} bytes of {size}"


def test_a_later_format_is_an_error_with_both_versions(path: Path) -> None:
    rewrite(path, lambda parts: parts.fields.update(version=7, tree=3))
    assert error_of(path) == (
        "it is of format version 7, and this fxquant reads up to 3: upgrade fxquant"
    )


def test_an_earlier_format_is_an_error_that_says_what_to_do(path: Path) -> None:
    path.write_bytes(b"\x93FXQUANT\x02\x00\x00\x00")
    assert error_of(path) == (
        "an earlier fxquant wrote it, and this one reads version 3: load it with that fxquant, "
        "save its state_dict() with torch.save, and load that into the same model made with this "
        "fxquant; or quantize anew"
    )


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest_of = container._digest

    def replace(*args: object) -> str:
        found = digest_of(*args)  # type: ignore[arg-type]
        path.with_name("other").write_bytes(path.read_bytes())
        path.with_name("other").replace(path)
        return found

    monkeypatch.setattr(container, "_digest", replace)
    assert error_of(path) == "it was replaced while it was read: load it again"


def test_a_loaded_model_does_not_change_with_its_file_unless_it_is_mapped(path: Path) -> None:
    name, content = "0.weight_scale", path.read_bytes()
    whole, mapped = fxquant.load(path), fxquant.load(path, mmap=True)
    before = whole.get_buffer(name).clone()
    assert torch.equal(mapped.get_buffer(name), before)
    scale = before.numpy().tobytes()
    with path.open("r+b") as file:  # in place, as `cp` writes
        file.write(content.replace(scale, bytes(len(scale))))
    assert torch.equal(whole.get_buffer(name), before)


def test_a_model_too_large_for_a_header_is_refused_before_it_is_written(path: Path) -> None:
    model = fxquant.load(path)
    model.numbers = [0] * (container.MAX_VALUES + 1)  # type: ignore[assignment]
    before = path.read_bytes()
    with pytest.raises(StorageError, match="where a file has room for 4194304 in 67108864"):
        fxquant.save(model, path)
    assert path.read_bytes() == before
