"""Tensors as named blocks, as safetensors holds them, and back.

    a Parameter of float32, (2, 3)    →  ["fc.weight", "torch.float32", [2, 3], "parameter", true]
    zeros of int32, (64,)             →  ["=00000000", "torch.int32", [64], "tensor", false]
    a tensor with channels last       →  ["conv.weight", …, "tensor", false, [0, 2, 3, 1]]
    a view of memory of 24 bytes      →  ["memory.0", …, "tensor", false, [3, 1], 0]

A tensor has a block of its own, contiguous, named by its place in the model. The order in which its
axes lie in memory stands beside it where that is another: kernels choose by it. Where all values of
a tensor in rows are the same, as symmetric zero-points are, one stands behind "=". Tensors that
share memory have a block of bytes together, and say where in it they lie.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import StorageError
from fxquant.numerics.packing import axis_order, in_order
from fxquant.storage.fields import matches
from fxquant.storage.plain_values import NAMED, Json

Memory = tuple[torch.device, int]
MAX_FILLED = 2**24
"""Bytes of all tensors of one value each, together; a file takes none for them."""
_NATIVE = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
"""What every version of safetensors holds; other tensors are bytes there."""
_ENTRY = tuple[str, str, list[int], str, bool]
_ORDERED = tuple[str, str, list[int], str, bool, list[int]]
_VIEW = tuple[str, str, list[int], str, bool, list[int], int]


def split_into_blocks(
    tensors: Sequence[Tensor], paths: Sequence[str]
) -> tuple[list[Json], dict[str, Tensor]]:
    """Return what to know of each tensor, and the blocks by name, contiguous, on the CPU.

    Args:
        tensors: all different objects.
        paths: where each is in the model.
    """
    entries, blocks = list[Json](), dict[str, Tensor]()
    num_users = Counter(map(_memory, tensors))
    numbers: dict[Memory, str] = {}
    num_filled = 0
    for tensor, path in zip(tensors, paths, strict=True):
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
        known = [str(tensor.dtype), list(tensor.shape), kind, tensor.requires_grad]
        memory = _memory(tensor)
        num_bytes = tensor.numel() * tensor.element_size()
        if memory is not None and num_users[memory] > 1 and _fits(tensor):
            if memory not in numbers:
                numbers[memory] = _free_name(f"memory.{len(numbers)}", blocks)
                blocks[numbers[memory]] = _whole_memory(tensor)
            place = [list(tensor.stride()), tensor.storage_offset()]
            entries.append([numbers[memory], *known, *place])
            continue
        values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        order = axis_order(tensor)
        value = _only_value(values) if order is None else None
        if value is not None and num_filled + num_bytes <= MAX_FILLED:
            num_filled += num_bytes
            entries.append([f"={value.hex()}", *known])
            continue
        name = _free_name(path, blocks)
        blocks[name] = values if tensor.dtype in _NATIVE else _bytes(values)
        entries.append([name, *known, *([] if order is None else [order])])
    return entries, blocks


def _memory(tensor: Tensor) -> Memory | None:
    """Return what tensors that share memory have in common; None for one that cannot share."""
    if tensor.numel() == 0 or tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.device, tensor.untyped_storage().data_ptr()


def _fits(tensor: Tensor) -> bool:
    """Say whether a tensor takes no more than its memory: one that was expanded may."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _whole_memory(tensor: Tensor) -> Tensor:
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return whole.set_(tensor.untyped_storage()).cpu()


def _free_name(name: str, blocks: Mapping[str, Tensor]) -> str:
    """Return a name that no block has, and that safetensors does not use itself."""
    while name in blocks or name == "__metadata__" or name.startswith("="):
        name = f"{name}'".lstrip("=")
    return name


def _bytes(values: Tensor) -> Tensor:
    """Return the bytes of contiguous values; of one value the strides may be anything."""
    return values.as_strided((values.numel(),), (1,)).view(torch.uint8)


def _only_value(values: Tensor) -> bytes | None:
    """Return the bytes of the value that all of `values` are, to the bit; None: not all are."""
    if values.numel() == 0:
        return b""
    rows = _bytes(values).reshape(-1, values.element_size())
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        return None
    return bytes(rows[0].tolist())


def read_tensors(
    entries: Json, names: Sequence[str], block: Callable[[str], Tensor], device: torch.device
) -> list[Tensor]:
    """Return the tensors.

    Args:
        entries: what is known of each.
        names: of all blocks.
        block: returns the block of a name, on `device`.
        device: of the tensors.

    Raises:
        StorageError: an entry is no tensor, or a block is missing, left over, or of another size.
    """
    reader = _Reader(block, set(names), device)
    tensors = [reader.read(entry) for entry in entries]
    left = set(names) - reader.used
    if left:
        raise StorageError(f"no tensor of its model is {min(left)!r}, which it holds")
    return tensors


class _Reader:
    """What makes tensors of one file."""

    def __init__(
        self, block: Callable[[str], Tensor], names: set[str], device: torch.device
    ) -> None:
        self.used: set[str] = set()
        self._block, self._names, self._device = block, names, device
        self._memories: dict[str, Tensor] = {}
        self._num_filled = 0

    def read(self, entry: Any) -> Tensor:
        """Return the tensor of one entry."""
        is_one = any(matches(entry, kind) for kind in (_ENTRY, _ORDERED, _VIEW))
        if not is_one or entry[1] not in NAMED:
            raise StorageError(f"{_brief(entry)} describes no tensor")
        name, dtype_name, shape, kind, requires_grad, *place = entry
        dtype = NAMED[dtype_name]
        if not isinstance(dtype, torch.dtype) or min([*shape, 0]) < 0:
            raise StorageError(f"{_brief(entry)} describes no tensor")
        num_bytes = math.prod(shape) * dtype.itemsize
        if len(place) == 2:
            tensor = self._view(name, dtype, shape, num_bytes, *place)
        elif name.startswith("="):
            tensor = self._filled(bytes.fromhex(name[1:]), dtype, shape, num_bytes)
        else:
            tensor = in_order(self._whole(name, dtype, shape, num_bytes), *place)
        if kind == "parameter":
            return nn.Parameter(tensor, requires_grad)
        return tensor.requires_grad_(requires_grad)

    def _whole(self, name: str, dtype: torch.dtype, shape: list[int], num_bytes: int) -> Tensor:
        if name in self.used:
            raise StorageError(f"two tensors are {name!r}")
        block = self._take(name)
        if block.dtype == dtype and list(block.shape) == shape:
            return block
        if block.dtype != torch.uint8 or block.numel() != num_bytes or dtype in _NATIVE:
            raise StorageError(f"{name!r} is {block.dtype}, {tuple(block.shape)}, not {dtype}")
        return block.reshape(-1).view(dtype).reshape(shape)

    def _view(
        self,
        name: str,
        dtype: torch.dtype,
        shape: list[int],
        num_bytes: int,
        strides: list[int],
        offset: int,
    ) -> Tensor:
        if name not in self._memories:
            self._memories[name] = self._take(name)
        memory = self._memories[name]
        is_memory = memory.dtype == torch.uint8 and memory.dim() == 1
        if not is_memory or num_bytes > len(memory) or min([*strides, offset, 0]) < 0:
            raise StorageError(f"a tensor of {num_bytes} bytes is no view of {name!r}")
        num_usable = len(memory) // dtype.itemsize * dtype.itemsize
        return memory[:num_usable].view(dtype).as_strided(shape, strides, offset)

    def _filled(self, value: bytes, dtype: torch.dtype, shape: list[int], num_bytes: int) -> Tensor:
        self._num_filled += num_bytes
        if self._num_filled > MAX_FILLED or len(value) != (dtype.itemsize if num_bytes else 0):
            raise StorageError(f"{num_bytes} bytes of one value of {len(value)} bytes")
        if num_bytes == 0:
            return torch.empty(shape, dtype=dtype, device=self._device)
        one = torch.frombuffer(bytearray(value), dtype=dtype).to(self._device)
        return one.reshape([1] * len(shape)).expand(shape).clone()

    def _take(self, name: str) -> Tensor:
        if name not in self._names:
            raise StorageError(f"it holds no tensor {name!r}")
        self.used.add(name)
        return self._block(name)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}…"
