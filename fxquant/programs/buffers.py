"""Memory for results, which is used again as soon as nobody reads them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.numerics import tensors_in

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


class Lifetimes:
    """Follows a graph from node to node.

    Args:
        graph: whose nodes are visited in their order.
        buffers: the memory in which some of their values lie, one or more in one piece.
    """

    def __init__(self, graph: fx.Graph, buffers: Buffers) -> None:
        self._buffers = buffers
        self._held: Counter[int] = Counter()
        """How many values lie in each piece."""
        self._places: dict[fx.Node, set[int]] = {}
        self._ending: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
        """The nodes that are read for the last time, by who reads them."""
        last = {
            each: node for node in graph.nodes for each in (node, *node.all_input_nodes)
        }  # who comes later takes the place of who came before
        for node, reader in last.items():
            self._ending[reader].append(node)

    def begin(self, node: fx.Node, value: Any) -> None:
        """Keep the memory of what `node` computes."""
        places = self._places.setdefault(node, set())
        for tensor in tensors_in(value):
            place = place_of(tensor)
            if self._buffers.holds(tensor) and place not in places:
                places.add(place)
                self._held[place] += 1

    def end(self, node: fx.Node) -> list[fx.Node]:
        """Free what is not read behind `node`; return the nodes whose values these are."""
        for each in self._ending[node]:
            for place in self._places.pop(each, ()):
                self._held[place] -= 1
                if not self._held[place]:
                    self._buffers.release(place)
        return self._ending[node]


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
