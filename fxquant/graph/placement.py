"""Which tensors of a graph get a quantizer, and which of them share one."""

from __future__ import annotations

from collections.abc import Set

from torch import fx, nn

from fxquant.graph.operations import data_input, is_layer, layer_of, operation_of
from fxquant.modules.layers import channel_axis
from fxquant.recipe.spec import CallSpec, TensorSpec


class QuantizedTensors:
    """Which results are quantized, by which spec, and which share one set of parameters."""

    def __init__(self, gm: fx.GraphModule, calls: dict[fx.Node, CallSpec]) -> None:
        self.places: list[fx.Node] = []
        """Nodes whose result is quantized, in execution order."""
        self._gm = gm
        self._calls = calls
        self._position = {node: index for index, node in enumerate(calls)}
        self._parent: dict[fx.Node, fx.Node] = {}  # a forest: the roots stand for their trees
        self._specs: dict[fx.Node, TensorSpec] = {}  # of the roots
        self._labels: dict[fx.Node, str] = {}  # of the roots
        self._axes: dict[fx.Node, set[int | None]] = {}  # of the roots
        self._reached: dict[fx.Node, fx.Node] = {}  # additions whose ReLU's result is quantized
        for node in reversed(gm.graph.nodes):  # a demand travels from a call to its inputs
            self._visit(node)
        self.places.reverse()

    def spec(self, node: fx.Node) -> TensorSpec:
        """Return the spec of the group that `node` belongs to."""
        return self._specs[self._root(node)]

    def label(self, node: fx.Node) -> str:
        """Return a name for the group: its concatenation's, else the node's own."""
        return self._labels.get(self._root(node), node.name)

    def axis(self, node: fx.Node) -> int | None:
        """Return the channels' axis, from the end, if each of them can have its own range."""
        root = self._root(node)
        axes = self._axes[root]
        return next(iter(axes)) if self._specs[root].per_channel and len(axes) == 1 else None

    def _visit(self, node: fx.Node) -> None:
        gm, call = self._gm, self._calls.get(node)
        if call is not None and call.weights is not None and is_layer(gm, node):
            layer = layer_of(gm, node)
            axis = None if isinstance(layer, nn.Linear) else channel_axis(layer)
            self._demand(data_input(node), call.activations, {axis})
        demanded = node in self._parent
        is_read = demanded or node in self._reached
        if call is not None and is_read and operation_of(gm, node).kind == "add":
            axes = self._axes[self._root(node if demanded else self._reached[node])]
            for operand in self._integer_operands(node):
                self._demand(operand, call.activations, axes)
        if demanded:
            self._settle(node)

    def _settle(self, node: fx.Node) -> None:
        """Quantize the demanded result of `node` here, or hand the demand to its inputs."""
        operation, source = operation_of(self._gm, node), data_input(node)
        axes = self._axes[self._root(node)] if operation.keeps_channels else {None}
        if operation.keeps_values and source is not None:
            self._share(node, source, axes)
            return
        if operation.concatenated:
            self._labels.setdefault(self._root(node), node.name)
            for each in operation.concatenated:
                self._share(node, each, {None})
            return
        if source is not None and operation.kind == "average":
            self._demand(source, self.spec(node), axes)
        if source is not None and operation.kind == "relu":
            self._reached[source] = node
        self.places.append(node)

    def _integer_operands(self, add: fx.Node) -> list[fx.Node]:
        """Return the operands that are quantized: all but a layer's result to add into.

        Of two such layers it is the one executed last, whose accumulator the kernel still holds.
        """
        operands = [operand for operand in add.args if isinstance(operand, fx.Node)]
        layers = [operand for operand in operands if self._can_add_into(operand)]
        if layers:
            operands.remove(max(layers, key=self._position.__getitem__))
        return operands

    def _can_add_into(self, node: fx.Node) -> bool:
        call = self._calls.get(node)
        is_quantized = call is not None and call.weights is not None and is_layer(self._gm, node)
        kinds = [operation_of(self._gm, user).kind for user in node.users]
        return is_quantized and len(kinds) - kinds.count("rank") == 1

    def _demand(self, node: fx.Node | None, spec: TensorSpec | None, axes: Set[int | None]) -> None:
        if node is None or spec is None:
            return
        self._parent.setdefault(node, node)
        root = self._root(node)
        self._specs[root] = _finer(self._specs.get(root, spec), spec)
        self._axes.setdefault(root, set()).update(axes)

    def _share(self, node: fx.Node, source: fx.Node, axes: Set[int | None]) -> None:
        """Let `source` use the same parameters as `node`."""
        mine = self._root(node)
        self._demand(source, self._specs[mine], axes)
        theirs = self._root(source)
        if mine is not theirs:
            self._parent[theirs] = mine
            self._specs[mine] = _finer(self._specs[mine], self._specs.pop(theirs))
            self._axes[mine] |= self._axes.pop(theirs)
            if theirs in self._labels:
                self._labels.setdefault(mine, self._labels.pop(theirs))

    def _root(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node


def _finer(one: TensorSpec, other: TensorSpec) -> TensorSpec:
    """Return the spec of more bits: calls that differ over one tensor get the most."""
    return other if other.bits > one.bits else one
