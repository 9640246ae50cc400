"""Values of graph nodes: in memory up to a cap, beyond it in memory-mapped files.

A file is unlinked as soon as it is open, so that nothing stays on the disk, however the process
ends.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Hashable
from typing import IO, Any

import torch
from torch import Tensor

from fxquant.errors import StorageError
from fxquant.numerics.containers import map_leaves


class _Spilled:
    """Where a tensor lies in a file, and how."""

    def __init__(self, file: IO[bytes], offset: int, value: Tensor) -> None:
        self.file, self.offset = file, offset
        self.shape, self.dtype, self.device = value.shape, value.dtype, value.device
        # The memory format decides which kernel runs, and so the last bits of its result.
        self.strides = value.stride()

    def load(self) -> Tensor:
        """Return the tensor; on the CPU its memory is the file's, changes stay private."""
        count = self.shape.numel()
        size = max(1, count * self.dtype.itemsize)
        mapped = mmap.mmap(self.file.fileno(), size, access=mmap.ACCESS_COPY, offset=self.offset)
        if count == 0:
            return torch.empty(self.shape, dtype=self.dtype, device=self.device)
        flat = torch.frombuffer(mapped, dtype=self.dtype, count=count)
        return flat.as_strided(self.shape, self.strides).to(self.device)


class ValueStore:
    """Values by key and batch number; tensors in them are never written to.

    Args:
        max_bytes: of tensors in memory; None for all of them.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.bytes_in_memory = 0
        self.bytes_spilled = 0
        self._values: dict[Hashable, dict[int, Any]] = {}
        self._files: dict[Hashable, IO[bytes]] = {}

    def put(self, key: Hashable, number: int, value: Any) -> None:
        """Keep `value`: a tensor, anything else, or tuples, lists and dicts of them."""
        kept = map_leaves(value, lambda each: self._keep(key, each))
        self._values.setdefault(key, {})[number] = kept

    def get(self, key: Hashable, number: int) -> Any:
        """Return the value that was put."""
        return map_leaves(self._values[key][number], _load)

    def drop(self, key: Hashable, number: int) -> None:
        """Forget one value; a key's file goes with its last value."""
        map_leaves(self._values[key].pop(number), self._release)
        if not self._values[key]:
            del self._values[key]
            if key in self._files:
                self._files.pop(key).close()

    def close(self) -> None:
        """Forget everything."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # of a full disk: what was not flushed
                file.close()
        self._values.clear()
        self._files.clear()
        self.bytes_in_memory = 0

    def __enter__(self) -> ValueStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, key: Hashable, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        size = value.numel() * value.element_size()
        if self.max_bytes is not None and self.bytes_in_memory + size > self.max_bytes:
            return self._spill(key, value)
        if value.untyped_storage().nbytes() > 2 * size:  # a view that would hold all of it
            value = value.clone()
        self.bytes_in_memory += size
        return value

    def _spill(self, key: Hashable, value: Tensor) -> _Spilled:
        value = value.resolve_conj().resolve_neg()
        if not _is_dense(value):
            value = value.contiguous()
        flat = value.as_strided((value.numel(),), (1,))
        try:
            if key not in self._files:
                self._files[key] = tempfile.TemporaryFile(prefix="fxquant-")  # noqa: SIM115
            file = self._files[key]
            offset = -(-file.seek(0, 2) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            file.seek(offset)
            file.write(flat.cpu().view(torch.uint8).numpy().data or b"\0")
            file.flush()
        except OSError as error:
            raise StorageError(
                f"{_temporary_folder()}: cannot write {value.numel() * value.element_size():,} "
                f"bytes beyond the {self.max_bytes:,} of max_bytes: {error.strerror or error}. Free"
                " some space, set TMPDIR to another folder, or raise Reconstruction.max_bytes"
            ) from error
        self.bytes_spilled += value.numel() * value.element_size()
        return _Spilled(file, offset, value)

    def _release(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self.bytes_in_memory -= value.numel() * value.element_size()
        return value


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # none can be written to
        return "temporary files"


def _is_dense(value: Tensor) -> bool:
    """Say whether the tensor's values lie in memory without gaps, in whichever order."""
    axes = zip(value.shape, value.stride(), strict=True)
    extent = 1 + sum((side - 1) * stride for side, stride in axes)
    return value.numel() > 0 and extent == value.numel()


def _load(value: Any) -> Any:
    return value.load() if isinstance(value, _Spilled) else value
