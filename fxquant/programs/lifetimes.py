"""Which of a graph's values are still to be read, and when their memory is free again."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from torch import fx

from fxquant.numerics import tensors_in
from fxquant.programs.buffers import Buffers, place_of


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
