"""Tensors as blocks of bytes, and back.

    a Parameter of float32, (2, 3)    →  ["torch.float32", [2, 3], "parameter", true, "whole"]
    zeros of int32, (64,)             →  ["torch.int32", [64], "tensor", false, "filled"]
    a view of memory of 24 bytes      →  [dtype, shape, kind, requires_grad, [0, 24, [3, 1], 0]]

A tensor has a block of its own, contiguous; where all values are the same, as symmetric zero-points
are, one is stored. Tensors that share memory have its number, size, and where in it they lie.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fxquant.errors import StorageError
from fxquant.storage.plain_values import NAMED, Json

Memory = tuple[torch.device, int]


def split_into_blocks(tensors: Sequence[Tensor]) -> tuple[Json, list[memoryview]]:
    """Return what to know of each tensor, and the blocks in their order."""
    entries, blocks = [], list[memoryview]()
    num_users = Counter(_memory(tensor) for tensor in tensors)
    numbers: dict[Memory, int] = {}
    for tensor in tensors:
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
        memory = _memory(tensor)
        place: Json = "whole"
        if memory is not None and num_users[memory] > 1:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            whole.set_(tensor.untyped_storage())
            if memory not in numbers:
                numbers[memory] = len(numbers)
                blocks.append(_bytes(whole))
            strides, offset = list(tensor.stride()), tensor.storage_offset()
            place = [numbers[memory], len(whole), strides, offset]
        else:
            block = _bytes(tensor)
            if _is_filled(block, tensor.element_size()):
                block, place = block[: tensor.element_size()], "filled"
            blocks.append(block)
        entries.append([str(tensor.dtype), list(tensor.shape), kind, tensor.requires_grad, place])
    return entries, blocks


def _memory(tensor: Tensor) -> Memory | None:
    """Return what tensors that share memory have in common; None for one that cannot share."""
    if tensor.numel() == 0 or tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.device, tensor.untyped_storage().data_ptr()


def _is_filled(block: memoryview, value_size: int) -> bool:
    """Say whether a block holds more than one value, and all are the same to the bit."""
    if len(block) <= value_size:
        return False
    values = torch.frombuffer(block, dtype=torch.uint8).reshape(-1, value_size)
    return bool((values == values[0]).all())


def _bytes(tensor: Tensor) -> memoryview:
    values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return values.view(torch.uint8).numpy().data


def read_tensors(
    entries: Json, content: bytearray, start: int, device: torch.device
) -> list[Tensor]:
    """Return the tensors.

    Args:
        entries: what is known of each.
        content: of the file.
        start: where in it the first block begins.
        device: of the tensors.

    Raises:
        StorageError: they take more or fewer bytes than there are.
    """
    tensors, shared = [], dict[int, Tensor]()
    for dtype_name, shape, kind, requires_grad, place in entries:
        dtype = NAMED[dtype_name]
        if isinstance(place, list):
            number, num_bytes, strides, offset = place
            if number not in shared:
                shared[number] = _block(content, start, num_bytes, device)
                start += num_bytes
            num_usable = num_bytes // dtype.itemsize * dtype.itemsize
            tensor = shared[number][:num_usable].view(dtype).as_strided(shape, strides, offset)
        else:
            num_values = 1 if place == "filled" else math.prod(shape)
            block = _block(content, start, num_values * dtype.itemsize, device)
            start += len(block)
            values = block.view(dtype)
            tensor = values.expand(shape).clone() if place == "filled" else values.reshape(shape)
        tensor.requires_grad_(requires_grad)
        tensors.append(nn.Parameter(tensor, requires_grad) if kind == "parameter" else tensor)
    if start != len(content):
        raise StorageError(f"its tensors end at byte {start}, and it ends at {len(content)}")
    return tensors


def _block(content: bytearray, start: int, num_bytes: int, device: torch.device) -> Tensor:
    """Return bytes of the file in memory of their own, aligned for any dtype."""
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8, device=device)
    read = torch.frombuffer(content, dtype=torch.uint8, count=num_bytes, offset=start)
    return read.to(device, copy=True)
