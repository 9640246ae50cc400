"""Models in files: `save` and `load`.

    magic · version · SHA-256 of all that follows · sizes · header · blocks

The header is JSON, compressed: the model as a tree (`fxquant.storage.encoding`) and a list of its
tensors. The blocks are the tensors' bytes, little-endian, one behind the other; tensors that share
memory share a block. Nothing in a file is code (`fxquant.storage.allowed`), and nothing is used
before the digest of all of it was checked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxquant.errors import StorageError
from fxquant.graph.journal import read_recipe, write_journals
from fxquant.storage.allowed import Allowed
from fxquant.storage.decoding import Decoder
from fxquant.storage.encoding import Encoder
from fxquant.storage.tensor_blocks import read_tensors, split_into_blocks
from fxquant.streaming.whole_files import write_whole

MAGIC = b"\x93FXQUANT"
VERSION = 2
_START = struct.Struct("<8sI32s")
"""Magic, version, digest."""


_SIZES = struct.Struct("<QQ")
"""Bytes of the header, and of the file."""


_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as torch.save writes: try torch.load",
    b"\x80": "a pickle: try torch.load",
    b"\x93NUMPY": "an array of numpy",
}
_MALFORMED = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip
"""What trees can raise that were made by hand, or for classes that have changed since."""


_logger = logging.getLogger("fxquant")


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write what `prepare`, `convert` or `quantize` returned to a file, for `load`.

    Weights below 8 bits take no more than their bits. The file appears whole or not at all. It
    names fxquant's classes by marks of their own (`fxquant.stored_names`), so that later versions
    of fxquant read it wherever they define them. `torch.save(model, path)` pickles, and pickles
    name classes by their modules: they may not outlive this version of fxquant.

    Args:
        model: left as it is. Hooks other than fxquant's own cannot be stored.
        path: of the file; if there is one it is replaced.

    Raises:
        StorageError: something in the model cannot be stored, said with its name before anything
            is written; or the file cannot be written.

    >>> import tempfile
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, f"{folder}/model.fxq")
    ...     loaded = load(f"{folder}/model.fxq")
    >>> torch.equal(loaded(torch.ones(4)), model(torch.ones(4)))
    True
    """
    if not isinstance(model, nn.Module):
        raise StorageError(f"save: model is a {type(model).__name__}: give a torch.nn.Module")
    encoder = Encoder()
    try:
        tree = encoder.encode(model, "model")
    except StorageError as error:
        raise StorageError(f"save: {error}") from error
    entries, blocks = split_into_blocks(encoder.tensors)
    content = {"torch": str(torch.__version__), "model": tree, "tensors": entries}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    header = zlib.compress(text.encode(), 9)
    size = _START.size + _SIZES.size + len(header) + sum(map(len, blocks))
    parts: list[bytes | memoryview] = [_SIZES.pack(len(header), size), header, *blocks]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    parts.insert(0, _START.pack(MAGIC, VERSION, digest.digest()))
    try:
        write_whole(Path(path), lambda file: file.writelines(parts))
    except OSError as error:
        raise StorageError(f"save: {path}: cannot be written: {error}") from error
    if encoder.custom:
        names = ", ".join(name.rpartition(":")[2] for name in encoder.custom)
        _logger.info("save: load(%r, custom=[%s]) will need them", os.fspath(path), names)


def load(
    path: str | os.PathLike[str],
    *,
    map_location: str | torch.device = "cpu",
    custom: Iterable[type | Callable[..., Any]] = (),
) -> nn.Module:
    """Return the model in a file that `save` wrote. No code of the file is run, for it has none.

    A file outlives moves and renames inside fxquant, which a pickle of `torch.save` may not.

    Args:
        path: of the file.
        map_location: the device to put all tensors on.
        custom: your own classes and functions that the model uses: its type, where it could not be
            traced whole, and what was left whole in it. See `fxquant.storage.allowed` for what
            needs none.

    Raises:
        StorageError: the file is missing, not of fxquant, cut off, altered, of another version, or
            names a class or function that is not allowed.
    """
    allowed, device = Allowed(custom), torch.device(map_location)
    torch.empty(0, device=device)  # PyTorch's own error if there is no such device
    try:
        with open(path, "rb") as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(content)
    except FileNotFoundError as error:
        raise StorageError(f"load: {path}: there is no such file") from error
    except OSError as error:
        raise StorageError(f"load: {path}: cannot be read: {error}") from error
    try:
        return _read_model(content, allowed, device)
    except StorageError as error:
        raise StorageError(f"load: {path}: {error}") from error


def _read_model(content: bytearray, allowed: Allowed, device: torch.device) -> nn.Module:
    header, start = _read_header(content)
    try:
        tensors = read_tensors(header["tensors"], content, start, device)
        model = Decoder(tensors, allowed).decode(header["model"])
    except _MALFORMED as error:
        raise StorageError(
            f"it was saved under PyTorch {header.get('torch')}, and cannot be built under "
            f"{torch.__version__}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise StorageError(f"it holds {type(model).__name__}, not a model")
    recipe = read_recipe(model)
    if recipe is not None:
        write_journals(model, recipe)  # from what the graphs hold of their nodes
    return model


def _read_header(content: bytearray) -> tuple[dict[str, Any], int]:
    """Return the header, and where the blocks begin; check everything before that is used."""
    if not content.startswith(MAGIC[: max(1, len(content))]):
        raise StorageError(f"it is not an fxquant file: {_foreign_kind(content)}")
    start = _START.size + _SIZES.size
    if len(content) < start:
        raise StorageError(f"it is cut off: {len(content)} bytes, where the start takes {start}")
    _, version, digest = _START.unpack_from(content)
    if version > VERSION:
        raise StorageError(
            f"it is of format version {version}, and this fxquant reads up to {VERSION}: upgrade "
            "fxquant"
        )
    if version == 1:
        raise StorageError(
            "it is of format version 1, which an earlier fxquant wrote, and this one reads version "
            f"{VERSION}: load it with that fxquant, save its state_dict() with torch.save, and "
            "load that into the same model made with this fxquant; or quantize anew"
        )
    header_size, size = _SIZES.unpack_from(content, _START.size)
    if len(content) < size:
        raise StorageError(f"it is cut off: {len(content)} bytes of {size}")
    found = hashlib.sha256(memoryview(content)[_START.size :]).digest()
    if version < 1 or found != digest or len(content) != size:
        raise StorageError(
            f"it was altered: its SHA-256 is {found.hex()[:16]}…, and {digest.hex()[:16]}… was "
            f"written; {len(content)} bytes of {size}: copy it anew"
        )
    try:
        header = json.loads(zlib.decompress(memoryview(content)[start : start + header_size]))
    except (ValueError, RecursionError, zlib.error) as error:
        raise StorageError(f"its header is none: {type(error).__name__}: {error}") from error
    if not isinstance(header, dict):
        raise StorageError(f"its header is none: {type(header).__name__}")
    return header, start + header_size


def _foreign_kind(content: bytearray) -> str:
    """Return what a file is instead, as far as can be told."""
    if not content:
        return "it is empty"
    if content[8:9] == b"{":
        return "safetensors: try safetensors.torch.load_file"
    known = (what for sign, what in _FOREIGN.items() if content.startswith(sign))
    return next(known, f"it starts with {bytes(content[:8])!r}")
