"""Put an observer on each tensor that will be quantized.

Before:  conv1 = Conv2d(x); relu = ReLU(conv1); pool = MaxPool2d(relu); fc = Linear(pool)
After:   observers_x = Observer(x); conv1 = Conv2d(observers_x)
         observers_relu = Observer(conv1); relu = ReLU(observers_relu)
         pool = MaxPool2d(relu); fc = Linear(pool)

Quantized is each tensor that feeds a layer: its input `x`, and the output of the ReLU, whose values
max-pool hands on. The network's output is not. A tensor behind a fused ReLU is watched before it,
where its distribution is whole.

* Calls that keep values (max-pool, reshape, slice, zero padding) hand their input's parameters on.
* The inputs of a concatenation share one set.
* An addition or an average whose result reaches a layer that way works on integers too, and so its
  operands are quantized; but not the result of a layer that feeds the addition alone: kernels add
  into the layer's accumulator.

Tensors that only float operations see (layer norm, softmax, SiLU) stay in float.

Channels get ranges of their own, if the recipe says so, where convolutions alone read the tensor,
directly, through pooling, or through additions.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import cast

from torch import fx, nn

from fxquant.data_free import Moments, channel_moments_of, range_of
from fxquant.graph import free_name, insert_after
from fxquant.layers import Layer, channel_axis, num_inputs
from fxquant.meta import record
from fxquant.observers import ChannelMean, ChannelObserver, LogitObserver, Observer
from fxquant.operations import (
    concat_inputs,
    data_input,
    is_add,
    is_average,
    is_layer,
    keeps_channels,
    keeps_values,
    module_of,
    relu_bounds,
)
from fxquant.pipeline import Pass
from fxquant.recipe import Recipe
from fxquant.region import Region
from fxquant.selection import record_calls_with_weights_inside, select_calls
from fxquant.spec import CallSpec, TensorSpec


@dataclass(frozen=True, eq=False)
class InsertObservers(Pass):
    """Put an observer on each tensor that will be quantized."""

    recipe: Recipe = field(default_factory=Recipe)

    def run(self, gm: fx.GraphModule) -> bool:
        """Insert `Observer`s, and `ChannelMean`s if the recipe corrects biases."""
        if any(isinstance(module, (Observer, ChannelMean)) for module in gm.modules()):
            return False
        calls = select_calls(gm, self.recipe)
        record_calls_with_weights_inside(gm)
        tensors = _QuantizedTensors(gm, calls)
        _insert(gm, tensors)
        logits = _insert_at_outputs(gm, self.recipe.logits, set(tensors.places))
        has_means = self.recipe.bias_correction is True and _insert_means(gm, calls)
        return bool(tensors.places) or logits or has_means


class _QuantizedTensors:
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
            layer = cast(Layer, module_of(gm, node))
            axis = None if isinstance(layer, nn.Linear) else channel_axis(layer)
            self._demand(data_input(node), call.activations, {axis})
        demanded = node in self._parent
        if call is not None and is_add(gm, node) and (demanded or node in self._reached):
            axes = self._axes[self._root(node if demanded else self._reached[node])]
            for operand in self._integer_operands(node):
                self._demand(operand, call.activations, axes)
        if demanded:
            self._settle(node)

    def _settle(self, node: fx.Node) -> None:
        """Quantize the demanded result of `node` here, or hand the demand to its inputs."""
        gm, source, concatenated = self._gm, data_input(node), concat_inputs(node)
        axes = self._axes[self._root(node)]
        if keeps_values(gm, node) and source is not None:
            self._share(node, source, axes if keeps_channels(gm, node) else {None})
            return
        if concatenated:
            self._labels.setdefault(self._root(node), node.name)
            for each in concatenated:
                self._share(node, each, {None})
            return
        if source is not None and is_average(gm, node):
            kept = axes if keeps_channels(gm, node) else {None}
            self._demand(source, self.spec(node), kept)
        if source is not None and relu_bounds(gm, node):
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
        return is_quantized and len(node.users) == 1

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


def _insert(gm: fx.GraphModule, tensors: _QuantizedTensors) -> None:
    container = free_name(gm, "observers")
    bounds: dict[str, set[tuple[float, float] | None]] = {}
    for node in tensors.places:
        bounds.setdefault(tensors.label(node), set()).add(_fused_bounds(node))
    moments = channel_moments_of(gm)
    observers: dict[str, Observer] = {}
    for node in tensors.places:
        label = tensors.label(node)
        # Tensors that share parameters are watched before their ReLUs if all bounds are the same.
        clamp = _fused_bounds(node) if len(bounds[label]) == 1 else None
        watched = data_input(node) if clamp else node
        assert watched is not None
        if label not in observers:
            alone = sum(tensors.label(each) == label for each in tensors.places) == 1
            known = moments.get(watched) if alone else None
            observers[label] = _observer(tensors.spec(node), clamp, tensors.axis(node), known)
            gm.add_submodule(f"{container}.{label}", observers[label])
        users = [node] if clamp else list(watched.users)
        with insert_after(watched):
            observer = gm.graph.call_module(f"{container}.{label}", (watched,))
        for user in users:
            user.replace_input_with(watched, observer)


def _observer(
    spec: TensorSpec,
    clamp: tuple[float, float] | None,
    axis: int | None,
    moments: Moments | None,
) -> Observer:
    """Return the observer that `spec` needs; of what batch norms tell, one that sees nothing."""
    if spec.range == "bn" and moments is not None:
        known = range_of(moments, clamp, per_channel=axis is not None)
        return Observer(spec, clamp, known, axis)
    if axis is None or spec.dynamic:
        return Observer(spec, clamp, axis=axis)
    return ChannelObserver(spec, clamp, axis)


def _insert_at_outputs(
    gm: fx.GraphModule, spec: TensorSpec | None, quantized: Set[fx.Node]
) -> bool:
    """Watch what the model returns, if its recipe quantizes that; of a region it is no output."""
    if spec is None or isinstance(gm, Region):
        return False
    (output,) = gm.graph.find_nodes(op="output")
    container = free_name(gm, "logit_observers")
    for node in output.all_input_nodes:
        if node in quantized:
            continue
        gm.add_submodule(f"{container}.{node.name}", LogitObserver(spec))
        with insert_after(node):
            observer = gm.graph.call_module(f"{container}.{node.name}", (node,))
        output.replace_input_with(node, observer)
    return True


def _fused_bounds(node: fx.Node) -> tuple[float, float] | None:
    known = record(node)
    return known.clamp if known.fused_into else None


def _insert_means(gm: fx.GraphModule, calls: dict[fx.Node, CallSpec]) -> bool:
    """Watch the mean input of each layer whose weight will be rounded."""
    container = free_name(gm, "input_means")
    names: dict[nn.Module, str] = {}
    for node, call in calls.items():
        layer, source = module_of(gm, node), data_input(node)
        if layer is None or source is None or call.weights is None:
            continue
        if layer not in names:
            names[layer] = f"{container}.{str(node.target).replace('.', '_')}"
            known = cast(Layer, layer)
            gm.add_submodule(names[layer], ChannelMean(num_inputs(known), channel_axis(known)))
        with gm.graph.inserting_before(node):
            mean = gm.graph.call_module(names[layer], (source,))
        node.replace_input_with(source, mean)
    return bool(names)
