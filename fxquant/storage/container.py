"""The file of a saved model: safetensors, with the model's tree and a digest among its metadata.

    {"__metadata__": {"fxquant": {"version": 3, "sha256": …, "torch": …, "custom": […], "tree": …}},
     "layer1.conv.weight_integers": {"dtype": "I8", "shape": […], "data_offsets": […]}, …}, bytes

Any tool that reads safetensors shows the tensors and those metadata. `tree` is the model as JSON,
compressed, in base 64. The digest is that of the whole file, with zeros in its own place. What a
file asks for is compared with fixed bounds before memory is taken for it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxquant.errors import StorageError
from fxquant.storage.fields import matches
from fxquant.storage.plain_values import Json
from fxquant.whole_files import flush, temporary_folder

VERSION = 3
MAX_HEADER = 2**26
"""Bytes of the header, and of the tree in it when it is no more compressed."""
MAX_VALUES = 2**22
"""Lists, objects and what is in them, in all JSON of a file."""
_KEY, _DIGITS = "fxquant", 64
_FIELDS = {"version": int, "sha256": str, "torch": str, "custom": list[str], "tree": str}
_EARLIER = b"\x93FXQUANT"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as torch.save writes: try torch.load",
    b"\x80": "a pickle: try torch.load",
    b"\x93NUMPY": "an array of numpy",
}
_CHUNK = 2**20


@dataclass(frozen=True)
class Content:
    """What a file holds besides its tensors."""

    torch: str
    """The version of PyTorch that it was saved under."""
    custom: Sequence[str]
    """Names of the classes and functions that only the caller of `load` can allow."""
    tree: Json


def write_file(path: Path, content: Content, blocks: Mapping[str, Tensor]) -> None:
    """Write a file, whole or not at all.

    Args:
        path: of the file; if there is one it is replaced.
        content: what it is to hold.
        blocks: the tensors by name, contiguous, on the CPU, none sharing memory.

    Raises:
        StorageError: the tree is larger than files may have it.
        OSError: it cannot be written.
    """
    text = json.dumps(content.tree, separators=(",", ":"), allow_nan=False)
    _check_json(text)
    blank = "0" * _DIGITS
    fields = {
        "version": VERSION,
        "sha256": blank,
        "torch": content.torch,
        "custom": list(content.custom),
        "tree": base64.b64encode(zlib.compress(text.encode(), 9)).decode(),
    }

    metadata = {_KEY: json.dumps(fields, separators=(",", ":"))}
    with temporary_folder(path.parent) as folder:
        unfinished = folder / "model"
        try:
            save_file(dict(blocks), unfinished, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        with unfinished.open("r+b") as file:
            header = _header_bytes(file)
            digest = _digest(file, header, blank)
            file.seek(8 + header.index(blank.encode()))
            file.write(digest.encode())
        flush(unfinished)
        unfinished.replace(path)
        flush(path.parent)


@contextmanager
def open_file(path: Path) -> Iterator[tuple[Content, Sequence[str], Callable[[str], Tensor]]]:
    """Open a file: what it holds, the names of its tensors, and what reads one of them.

    The tensors are mapped: they lie in memory that the system reads from the file when they are
    used, and writes to nowhere. Everything was compared with the digest before.

    Raises:
        StorageError: it is no such file, or was cut off, altered, or written by a later fxquant.
        OSError: it cannot be read.
    """
    with _open_regular(path) as file:
        before = os.fstat(file.fileno())
        header = _header_bytes(file)
        fields, num_bytes = _parse(header)
        if before.st_size != num_bytes:
            kind = "is cut off" if before.st_size < num_bytes else "was altered"
            raise StorageError(f"it {kind}: {before.st_size} bytes of {num_bytes}")
        found = _digest(file, header, fields["sha256"])
        if found != fields["sha256"]:
            raise StorageError(
                f"it was altered: its SHA-256 is {found[:16]}…, and {fields['sha256'][:16]}… was "
                "written: copy it anew"
            )
        content = Content(fields["torch"], fields["custom"], _read_tree(fields["tree"]))
        try:
            with safe_open(path, framework="pt") as tensors:
                yield content, list(tensors.keys()), tensors.get_tensor
        except SafetensorError as error:
            raise StorageError(f"its tensors cannot be read: {error}") from error
        after = os.stat(path)
        if any(getattr(before, each) != getattr(after, each) for each in _IDENTITY):
            raise StorageError("it was replaced while it was read: load it again")


_IDENTITY = ("st_dev", "st_ino", "st_size", "st_mtime_ns")


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is no pipe or device: these may never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError("it is not a file with content, but a folder, a pipe or a device")
    with open(descriptor, "rb") as file:
        yield file


def _header_bytes(file: BinaryIO) -> bytes:
    """Return the header, which is not checked yet; the start alone shows what a file is."""
    file.seek(0)
    start = file.read(9)
    size = int.from_bytes(start[:8], "little")
    if start.startswith(_EARLIER[:8]):
        raise StorageError(
            f"an earlier fxquant wrote it, and this one reads version {VERSION}: load it with that "
            "fxquant, save its state_dict() with torch.save, and load that into the same model "
            "made with this fxquant; or quantize anew"
        )
    if len(start) < 9 or start[8:] != b"{" or size > 2**48:
        raise StorageError(f"it is not an fxquant file: {_foreign_kind(start)}")
    if size > MAX_HEADER:
        raise StorageError(f"its header of {size} bytes is longer than {MAX_HEADER}")
    header = start[8:] + file.read(size - 1)
    if len(header) < size:
        raise StorageError(f"it is cut off: {8 + len(header)} bytes, where {8 + size} are a start")
    return header


def _foreign_kind(start: bytes) -> str:
    """Return what a file is instead, as far as can be told."""
    if not start:
        return "it is empty"
    known = (what for sign, what in _FOREIGN.items() if start.startswith(sign))
    return next(known, f"it starts with {start[:8]!r}")


def _parse(header: bytes) -> tuple[dict[str, Any], int]:
    """Return fxquant's own fields, and the size that the file should have."""
    known = _parse_json(header.decode(errors="replace"))
    metadata = known.get("__metadata__") if isinstance(known, dict) else None
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise StorageError(
            "it is not an fxquant file: safetensors of something else: try "
            "safetensors.torch.load_file"
        )
    fields = _parse_json(text)
    version = fields.get("version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise StorageError(
            f"it is of format version {version}, and this fxquant reads up to {VERSION}: upgrade "
            "fxquant"
        )
    wrong = [name for name, kind in _FIELDS.items() if not matches(fields.get(name), kind)]
    if wrong or version != VERSION or len(fields["sha256"]) != _DIGITS:
        raise StorageError(f"its header is none: {', '.join(wrong) or 'version'} is wrong")
    if header.count(fields["sha256"].encode()) != 1:
        raise StorageError("its header is none: it states its digest more than once")
    ends = [each["data_offsets"][1] for name, each in known.items() if name != "__metadata__"]
    return fields, 8 + len(header) + max(ends, default=0)


def _digest(file: BinaryIO, header: bytes, stated: str) -> str:
    """Return the SHA-256 of a file with zeros in the place of the digest that it states."""
    digest = hashlib.sha256(len(header).to_bytes(8, "little"))
    digest.update(header.replace(stated.encode(), b"0" * _DIGITS))
    file.seek(8 + len(header))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _read_tree(text: str) -> Json:
    decompress = zlib.decompressobj()
    packed = base64.b64decode(text, validate=True)
    content = decompress.decompress(packed, MAX_HEADER + 1)
    if not decompress.eof or decompress.unused_data:
        raise StorageError(f"its tree is no whole one, or longer than {MAX_HEADER} bytes")
    return _parse_json(content.decode())


def _parse_json(text: str) -> Any:
    """Return what a text says, if it is no longer than it may be."""
    _check_json(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"its header is none: {type(error).__name__}: {error}") from error


def _check_json(text: str) -> None:
    """Raise if a text would take much more memory than it has bytes, or is too long."""
    num_values = sum(map(text.count, ",[{"))
    if len(text) > MAX_HEADER or num_values > MAX_VALUES:
        raise StorageError(
            f"its model has {num_values} values in {len(text)} bytes, where a file has room for "
            f"{MAX_VALUES} in {MAX_HEADER}: tensors take none of it"
        )
