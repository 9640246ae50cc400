"""A part of a graph between an entry and an exit, and whether it can be learned as one block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from fxquant.graph.operations import module_of, operation_of
from fxquant.modules.own import as_own
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.rounding.blocks.flow import Flow
from fxquant.rounding.subgraphs import Subgraph


@dataclass(frozen=True, eq=False)
class Path:
    """One way through a block: what `nodes` make of the entry's value."""

    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    """In execution order, parameters and sizes that they read included, the entry not."""
    context: tuple[fx.Node, ...] = ()
    """What the nodes read beside, that no rounding has reached: masks, say."""
    is_ahead: bool = False
    """The entry is not final when the block's turn comes: its float value stands in."""


class Region:
    """What lies between an entry and an exit: a block to be, unless something speaks against it."""

    def __init__(self, flow: Flow, entry: fx.Node, exit: fx.Node, nodes: set[fx.Node]) -> None:
        self._flow, self.entry, self.exit, self.nodes = flow, entry, exit, nodes
        while self._is_own(self.entry):
            self.nodes.add(self.entry)
            self.entry = flow.inputs[self.entry][0]

    def _is_own(self, entry: fx.Node) -> bool:
        """Say whether the region alone reads the entry, which hands on, rounded or in parts."""
        gm = self._flow.gm
        own = as_own(module_of(gm, entry))
        is_movable = own.rounds or own.watches or operation_of(gm, entry).kind == "split"
        return is_movable and all(user in self.nodes for user in self._flow.users[entry])

    def why_not(self, max_layers: int, layers: Sequence[Subgraph]) -> str | None:
        """Return why it cannot be learned as one block, or None if it can."""
        for node in self._flow.sorted(self.nodes - {self.exit}):
            outside = [user.name for user in self._flow.users[node] if user not in self.nodes]
            if outside:
                return f"{node.name} inside of it also feeds {outside[0]}"
        change = next(
            (each for node, each in self._flow.missed.items() if node in self.nodes), None
        )
        if change is not None:
            return f"{change.name} changes a tensor in place that is read through a view of it"
        learned = {call.node for layer in layers for call in layer.calls}
        for node in self._flow.sorted(self.nodes - learned):
            if isinstance(module_of(self._flow.gm, node), QuantizedLayer):
                return f"{node.name} in it is not learned"
        for layer in layers:
            if any(call.node not in self.nodes for call in layer.calls):
                return f"{layer.name} is called outside of it too"
        if len(layers) > max_layers:
            return f"it has {len(layers)} quantized layers, more than {max_layers}"
        foreign = self.foreign()
        return f"it needs the size of {foreign.name}" if foreign is not None else None

    def foreign(self) -> fx.Node | None:
        """Return a node outside whose size the region is computed with, if there is one."""
        known = {*self.nodes, self.entry}
        needed = self._flow.sorted(self._needed())
        read = (each for node in needed for each in self._flow.others[node])
        outside = (each for each in read if each in self._flow.inputs and each not in known)
        return next((each for each in outside if each not in self._flow.fixed), None)

    def _context(self) -> list[fx.Node]:
        """Return what the region reads of values that no rounding has reached."""
        known = {*self.nodes, self.entry}
        read = {each for node in {*self.nodes, *self._needed()} for each in self._flow.others[node]}
        return self._flow.sorted((read & self._flow.fixed) - known)

    def _needed(self) -> set[fx.Node]:
        """Return the parameters and sizes that the region's nodes are computed with."""
        found: set[fx.Node] = set()
        waiting = [each for node in self.nodes for each in self._flow.others[node]]
        while waiting:
            node = waiting.pop()
            if node not in found and node not in self._flow.inputs:
                found.add(node)
                waiting += self._flow.others[node]
        return found

    def path(self, is_ahead: bool = False) -> Path:
        """Return the region as a path."""
        nodes = self._flow.sorted({*self.nodes, *self._needed()})
        return Path(self.entry, self.exit, tuple(nodes), tuple(self._context()), is_ahead)
