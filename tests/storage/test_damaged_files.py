"""A file that is damaged, foreign, or made by hand is an error that says what is wrong with it."""

import hashlib
import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fxquant
from fxquant import StorageError
from fxquant.storage import files as storage

START = struct.Struct("<8sI32sQQ")


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


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a file by hand, as someone would who knows the format."""
    content = path.read_bytes()
    magic, version, _, size, _ = START.unpack_from(content)
    header = json.loads(zlib.decompress(content[START.size : START.size + size]))
    change(header)
    packed = zlib.compress(json.dumps(header).encode())
    rest = packed + content[START.size + size :]
    sizes = struct.pack("<QQ", len(packed), START.size + len(rest))
    digest = hashlib.sha256(sizes + rest).digest()
    path.write_bytes(struct.pack("<8sI32s", magic, version, digest) + sizes + rest)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nothing") == "there is no such file"


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path).startswith("cannot be read: [Errno 21] Is a directory")


def test_foreign_files_are_named(path: Path) -> None:
    start = "it is not an fxquant file: "
    torch.save({"a": torch.ones(2)}, path)
    assert error_of(path) == f"{start}a zip archive, as torch.save writes: try torch.load"
    path.write_bytes(pickle.dumps({}))
    assert error_of(path) == f"{start}a pickle: try torch.load"
    with path.open("wb") as file:
        np.save(file, np.ones(2))
    assert error_of(path) == f"{start}an array of numpy"
    save_file({"a": torch.ones(2)}, path)
    assert error_of(path) == f"{start}safetensors: try safetensors.torch.load_file"
    path.write_bytes(b"hello")
    assert error_of(path) == f"{start}it starts with b'hello'"
    path.write_bytes(b"")
    assert error_of(path) == f"{start}it is empty"


def some_places(content: bytes) -> list[int]:
    """Return all places in the start of a file, and every seventh behind it."""
    return [*range(1, START.size), *range(START.size, len(content), 7), len(content) - 1]


def test_a_file_cut_off_anywhere_is_an_error(path: Path) -> None:
    content = path.read_bytes()
    for size in some_places(content):
        path.write_bytes(content[:size])
        error = error_of(path)
        if size < START.size:
            assert error == f"it is cut off: {size} bytes, where the start takes {START.size}"
        else:
            assert error == f"it is cut off: {size} bytes of {len(content)}"


def test_any_changed_byte_is_an_error(path: Path) -> None:
    content = path.read_bytes()
    for place in (0, *some_places(content)):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        error = error_of(path)
        assert error.startswith(("it was altered: ", "it is ")), error
        if place >= START.size:
            assert error.startswith("it was altered: its SHA-256 is ")


def test_bytes_behind_the_end_are_an_error(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    assert f"; {size + 1} bytes of {size}: copy it anew" in error_of(path)


def test_a_later_format_is_an_error_with_both_versions(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:12] = struct.pack("<I", 7)
    path.write_bytes(content)
    assert error_of(path) == (
        "it is of format version 7, and this fxquant reads up to 2: upgrade fxquant"
    )


def test_an_earlier_format_is_an_error_that_says_what_to_do(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:12] = struct.pack("<I", 1)
    path.write_bytes(content)
    assert error_of(path) == (
        "it is of format version 1, which an earlier fxquant wrote, and this one reads version 2: "
        "load it with that fxquant, save its state_dict() with torch.save, and load that into the "
        "same model made with this fxquant; or quantize anew"
    )


def graph_of(header: dict[str, Any]) -> list[Any]:
    nodes = header["model"][3]
    assert isinstance(nodes, list)
    return nodes


@pytest.mark.parametrize("name", ["os:system", "torch.hub:load", "torch:load", "builtins:exec"])
def test_a_file_that_calls_other_functions_is_refused(name: str, path: Path) -> None:
    def call_it(header: dict[str, Any]) -> None:
        graph_of(header)[1] = ["call_function", "y", name, ["touch here"], {}, {}]

    rewrite(path, call_it)
    module, _, function = name.partition(":")
    assert error_of(path) == (
        f"it names the function '{module}.{function}', which files may not use: if you know it and "
        f"trust the file, load(path, custom=[{function}])"
    )


def test_a_file_of_other_classes_is_refused(path: Path) -> None:
    rewrite(path, lambda header: header.update(model=["object", "subprocess:Popen", {}]))
    assert error_of(path).startswith("it names the class 'subprocess.Popen', which files may not")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("model"),
        lambda header: header.update(model=["unknown"]),
        lambda header: header.update(model=["tensor", 99]),
        lambda header: header.update(model=[[]]),
        lambda header: header["tensors"][0].__setitem__(1, [-1]),
        lambda header: header["tensors"][0].__setitem__(0, "torch.load"),
        lambda header: header["tensors"].pop(),
        lambda header: graph_of(header).append(["output"]),
        lambda header: graph_of(header)[1].__setitem__(3, [["node", 5]]),
    ],
)
def test_a_file_that_makes_no_sense_is_an_error(
    change: Callable[[dict[str, Any]], None], path: Path
) -> None:
    rewrite(path, change)
    assert error_of(path).startswith(
        (f"it was saved under PyTorch {torch.__version__}, and cannot be built", "its tensors end")
    )


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"[" * 100_000])
def test_a_file_without_a_header_is_an_error(header: bytes, path: Path) -> None:
    packed = zlib.compress(header) if header else b""
    sizes = struct.pack("<QQ", len(packed), START.size + len(packed))
    digest = hashlib.sha256(sizes + packed).digest()
    path.write_bytes(struct.pack("<8sI32s", storage.MAGIC, 2, digest) + sizes + packed)
    assert error_of(path).startswith("its header is none: ")


def test_a_file_that_holds_no_model_is_an_error(path: Path) -> None:
    rewrite(path, lambda header: header.update(model=3))
    assert error_of(path) == "it holds int, not a model"


def test_the_format_has_not_changed(path: Path) -> None:
    magic, version, *_ = START.unpack_from(path.read_bytes())
    assert (magic, version) == (b"\x93FXQUANT", 2) == (storage.MAGIC, storage.VERSION)
