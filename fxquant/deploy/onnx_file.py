"""An ONNX model as a file: checked, and there whole or not at all.

The format holds 2 GB: of a larger model the tensors lie in a file of their own, `model.onnx.data`
next to `model.onnx`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fxquant.whole_files import flush, temporary_folder

if TYPE_CHECKING:
    from onnx import ModelProto

_MAX_BYTES = 2_000_000_000  # of tensors; protobuf ends at 2 GiB, all else of a model included


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a path to write a model to, which gets its name, `path`, when the block ends well.

    Raises:
        OSError: it cannot be written.
    """
    with temporary_folder(path.parent) as folder:
        written = folder / path.name
        yield written
        tensors = _tensors_of(written)
        for file in (tensors, written):
            if file.exists():
                flush(file)
        if tensors.exists():
            # A crash between these lines leaves no model, never one with the tensors of another.
            path.unlink(missing_ok=True)
            tensors.replace(_tensors_of(path))
        written.replace(path)
        flush(path.parent)


def is_large(model: ModelProto) -> bool:
    """Say whether a model is too large for one file, and for ONNX's own inference of shapes."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _MAX_BYTES


def write_model(model: ModelProto, path: Path) -> None:
    """Write a model, with its tensors in another file if they are large, and check it."""
    import onnx

    if is_large(model):
        location = _tensors_of(path).name
        _tensors_of(path).unlink(missing_ok=True)  # they would be appended to it
        onnx.save_model(model, path, save_as_external_data=True, location=location)
    else:
        path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(os.fspath(path))


def change_graph(path: Path, change: Callable[[ModelProto], None]) -> None:
    """Let `change` work on the model of a file; tensors in another file stay there."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def _tensors_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")
