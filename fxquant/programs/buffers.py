"""Memory for results, which is used again as soon as nobody reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST = 2  # times what is asked for: larger pieces wait for something larger


class Buffers:
    """Pieces of memory, some of them in use."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._used: dict[int, Tensor] = {}
        self.num_bytes = 0
        """Of all pieces together."""

    def take(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a dense tensor whose memory nobody uses."""
        size = math.prod(shape) * dtype.itemsize
        fitting = [each for each in self._free if size <= len(each) <= size * _LARGEST]
        if fitting:
            piece = min(fitting, key=len)
            self._free = [each for each in self._free if each is not piece]
        else:
            piece = torch.empty(size, dtype=torch.uint8)
            self.num_bytes += size
        self._used[place_of(piece)] = piece
        return piece[:size].view(dtype).as_strided(tuple(shape), tuple(strides))

    def like(self, tensor: Tensor) -> Tensor:
        """Return memory for a tensor of the same sizes and layout."""
        return self.take(tensor.shape, tensor.stride(), tensor.dtype)

    def holds(self, tensor: Tensor) -> bool:
        """Say whether a tensor lies in a piece that is in use."""
        return place_of(tensor) in self._used

    def used(self) -> set[int]:
        """Return where the pieces in use lie."""
        return {*self._used}

    def release(self, place: int) -> None:
        """Let a piece be used again."""
        self._free.append(self._used.pop(place))


def place_of(tensor: Tensor) -> int:
    """Return where the memory begins that a tensor lies in: views of one have the same."""
    return tensor.untyped_storage().data_ptr()


def is_dense(tensor: Tensor) -> bool:
    """Say whether a tensor fills its memory, each value once, in whatever order of axes."""
    sizes = sorted(
        (stride, size)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size > 1
    )
    expected = 1
    for stride, size in sizes:
        if stride != expected:
            return False
        expected *= size
    return tensor.numel() > 0
