"""Models in files: `save` and `load`.

A file is safetensors (`fxquant.storage.container`): the model as a tree of JSON
(`fxquant.storage.encoding`), and its tensors by name. Nothing in it is code
(`fxquant.storage.allowed`), and nothing is used before it was checked. `save` reads what it wrote
by the rules of `load` before it says that it is done.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import StorageError, kind_of
from fxquant.graph.journal import read_recipe, write_journals
from fxquant.storage.allowed import Allowed
from fxquant.storage.container import Content, open_file, write_file
from fxquant.storage.decoding import Decoder
from fxquant.storage.encoding import Encoder
from fxquant.storage.plain_values import Json
from fxquant.storage.tensor_blocks import read_tensors, split_into_blocks

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
        raise StorageError(f"save: model is {kind_of(model)}: give a torch.nn.Module")
    _require_path(path, "save")
    encoder = Encoder()
    try:
        tree = encoder.encode(model, "model")
        _require_readable(tree, encoder)
        entries, blocks = split_into_blocks(encoder.tensors, encoder.paths)
        content = Content(
            str(torch.__version__), list(encoder.custom), {"model": tree, "tensors": entries}
        )
        write_file(Path(path), content, blocks)
    except StorageError as error:
        raise StorageError(f"save: {error}") from error
    except OSError as error:
        raise StorageError(f"save: {path}: cannot be written: {error}") from error
    if encoder.custom:
        names = _list(encoder.custom)
        _logger.info("save: load(%r, custom=[%s]) will need them", os.fspath(path), names)


def _require_readable(tree: Json, encoder: Encoder) -> None:
    """Raise `StorageError` if `load` would refuse a tree, or make something else of it."""
    reader = Decoder(encoder.tensors, Allowed(encoder.custom.values()))
    try:
        read = reader.decode(json.loads(json.dumps(tree)), with_code=False)
    except StorageError as error:
        raise StorageError(f"load would refuse it: {error}") from error
    if Encoder().encode(read, "model") != tree:
        raise StorageError("load would make something else of it")


def load(
    path: str | os.PathLike[str],
    *,
    map_location: str | torch.device = "cpu",
    mmap: bool = False,
    custom: Iterable[type | Callable[..., Any]] = (),
) -> nn.Module:
    """Return the model in a file that `save` wrote. No code of the file is run, for it has none.

    A file outlives moves and renames inside fxquant, which a pickle of `torch.save` may not.

    Args:
        path: of the file.
        map_location: the device to put all tensors on.
        mmap: leave tensors for the CPU in the file, from which the system reads them when they are
            used, as `torch.load` does: then the file must stay as it is while the model is in use.
        custom: your own classes and functions that the model uses: its type, where it could not be
            traced whole, and what was left whole in it. See `fxquant.storage.allowed` for what
            needs none.

    Raises:
        StorageError: the file is missing, not of fxquant, cut off, altered, of another version, or
            names a class or function that is not allowed.
    """
    _require_path(path, "load")
    allowed, device = Allowed(custom), torch.device(map_location)
    torch.empty(0, device=device)  # PyTorch's own error if there is no such device
    try:
        with open_file(Path(path)) as (content, names, block):
            _require_custom(content.custom, allowed)
            tensors = read_tensors(
                content.tree["tensors"],
                names,
                lambda name: block(name).to(device, copy=not mmap),
                device,
            )
            return _read_model(content, tensors, allowed)
    except StorageError as error:
        raise StorageError(f"load: {path}: {error}") from error
    except FileNotFoundError as error:
        raise StorageError(f"load: {path}: there is no such file") from error
    except OSError as error:
        raise StorageError(f"load: {path}: cannot be read: {error}") from error
    except Exception as error:  # whatever a file that was made by hand can raise
        raise StorageError(
            f"load: {path}: its header is none: {type(error).__name__}: {error}"
        ) from error


def _require_path(path: Any, caller: str) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise StorageError(f"{caller}: path is {kind_of(path)}: give the path of a file")


def _read_model(content: Content, tensors: Sequence[Tensor], allowed: Allowed) -> nn.Module:
    try:
        model = Decoder(tensors, allowed).decode(content.tree["model"])
    except StorageError as error:
        versions = f"saved under PyTorch {content.torch}, read under {torch.__version__}"
        raise StorageError(f"{error} ({versions})") from error
    if not isinstance(model, nn.Module):
        raise StorageError(f"it holds {type(model).__name__}, not a model")
    recipe = read_recipe(model)
    if recipe is not None:
        write_journals(model, recipe)  # from what the graphs hold of their nodes
    return model


def _require_custom(names: Sequence[str], allowed: Allowed) -> None:
    """Raise, with all of them, if the caller gave not all that a file needs."""
    missing = [name for name in names if allowed.lacks(name)]
    if missing:
        raise StorageError(
            f"it names {_list(missing)}, which a file may use only if they are given: if you know "
            f"them and trust the file, load(path, custom=[{_list(names)}])"
        )


def _list(names: Iterable[str]) -> str:
    """Return the names of classes and functions as one writes them in an argument."""
    own = [name.replace("torch.ops:", "torch.ops.").rpartition(":")[2] for name in names]
    return ", ".join(own)
