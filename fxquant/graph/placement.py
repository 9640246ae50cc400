"""Which edges of a graph get a quantizer: a tensor is rounded for those that work on integers.

    a tensor's reader is …                             and reads …
    ------------------------------------------------   ------------------------------------------
    a layer whose activations are quantized            integers
    a product of two activations that the recipe       integers
      quantizes
    an addition, if all that read its sum do           integers, but for a layer's result that a
                                                       kernel adds into
    another operation that the target has on           integers
      integers, if such a reader reads its result
    an average, if all others that read either do      integers
    a call that keeps values, or a concatenation,      integers: what it reads is rounded in the
      if all that read its result do                   place of its result
    an output of the model                             what the others read of a sum, an average,
                                                       a concatenation, a call that keeps values;
                                                       and of a layer and its activation, unless
                                                       the target has `float_outputs`; of all else
                                                       the float value
    any reader of what is changed in place between     what the others read
      two that read integers
    anything else                                      the float value

So a residual stream that a layer norm reads stays in float, whatever else reads it, and so does all
that feeds it. A call that leads to nothing but outputs is counted as one: it decides nothing. Where
a target works on integers only if a result is quantized (`Target.quantized_results`), all that read
that result read integers.

Tensors meet in concatenations, which want one set of parameters, and part in splits and slices.
Whether they share one is decided when their values are known (`fxquant.passes.KeepFloats`,
`ChooseRanges`):

    what shares                                         if it costs it no more than …
    -------------------------------------------------   -----------------------------------------
    a tensor that a concatenation and others read       `JOINED_COSTS`, else the concatenation's
                                                        operand is rounded once more
    a split's or slice's result, what it is taken from  `PARTED_COSTS`, else it is taken of the
                                                        float value and rounded by itself
    an addition's operand, the steps of the sum         `ADDED_COSTS`, else the addition works in
                                                        float, and so do those that feed it; so does
                                                        one whose operands only it has in integers

A cost is by how many dB the noise of rounding grows over that of a tensor's own parameters.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from torch import fx, nn

from fxquant.graph.mutations import changed_while_read
from fxquant.graph.operations import (
    data_input,
    is_add,
    is_layer,
    is_product,
    layer_of,
    module_of,
    operation_of,
    readers,
)
from fxquant.graph.records import record
from fxquant.modules.layers import channel_axis
from fxquant.recipe.spec import CallSpec, TensorSpec, finer
from fxquant.recipe.target import TARGETS, Target, layer_name

JOINED_COSTS = 1.0
PARTED_COSTS = 6.0
ADDED_COSTS = 18.0
_NAMES = {"identity": "move", "split": "select", "max_pool2d": "max_pool", "swish": "silu"}
_LEADS_ON = ("add", "average", "concat")


def target_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return what targets call the operation that `node` computes."""
    operation = operation_of(gm, node)
    if operation.kind == "layer":
        return layer_name(module_of(gm, node)) or "layer"
    if operation.kind == "average":
        return "average_pool" if operation.averaged is None else "global_average"
    if operation.keeps_values and operation.kind == "other":
        selects = "select" if operation.selects else "max_pool"
        return "move" if operation.moves_only and not operation.selects else selects
    return _NAMES.get(operation.activation or operation.kind, operation.kind)


@dataclass
class _Demand:
    """What those ask for that read a tensor as integers."""

    spec: TensorSpec
    axes: set[int | None]
    readers: list[fx.Node] = field(default_factory=list)


class Placement:
    """Which results are quantized, by which spec, and for whom.

    Args:
        gm: ReLUs are marked as fused; nothing is observed yet.
        calls: what is asked of each layer and addition.
        target: what the runtime computes on integers.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        calls: dict[fx.Node, CallSpec],
        target: Target = TARGETS["x86"],
    ) -> None:
        self._gm = gm
        self._calls = calls
        self._target = target
        self._changed = changed_while_read(gm)  # all see the change, or none would
        self._position = {node: index for index, node in enumerate(gm.graph.nodes)}
        self._demands: dict[fx.Node, _Demand] = {}
        self._averages: dict[fx.Node, list[fx.Node]] = {}  # that would work on the integers of …
        self._relus: dict[fx.Node, fx.Node] = {}  # behind the addition …, with integers as result
        self._neutral: set[fx.Node] = set()  # lead to nothing but outputs
        self._places: set[fx.Node] = set()
        self._for_all: set[fx.Node] = set()  # a float reader would cost an integer kernel
        for node in reversed(gm.graph.nodes):  # a demand travels from a call to its inputs
            self._visit(node)

    @property
    def places(self) -> list[fx.Node]:
        """Nodes whose result is quantized, in execution order."""
        return sorted(self._places, key=self._position.__getitem__)

    def spec(self, place: fx.Node) -> TensorSpec:
        """Return the finest spec of those that read the integers."""
        return self._demands[place].spec

    def readers(self, place: fx.Node) -> list[fx.Node]:
        """Return those that read the integers."""
        return [each for each in place.users if each in self._demands[place].readers]

    def is_for_all(self, place: fx.Node) -> bool:
        """Say whether the target wants no reader of the float value beside."""
        return place in self._for_all

    def is_late(self, place: fx.Node) -> bool:
        """Say whether the tensor is changed in place before any of those reads it."""
        change, behind = self._change(place), self._demands[place].readers
        position = self._position
        return change is not None and all(position[each] > position[change] for each in behind)

    def end(self, place: fx.Node) -> fx.Node:
        """Return the call behind which the values are what is read as integers."""
        change = self._change(place)
        return change if change is not None and self.is_late(place) else place

    def axis(self, place: fx.Node) -> int | None:
        """Return the channels' axis, from the end, if each of them can have its own range."""
        demand = self._demands[place]
        return (
            next(iter(demand.axes)) if demand.spec.per_channel and len(demand.axes) == 1 else None
        )

    def _visit(self, node: fx.Node) -> None:
        gm, call = self._gm, self._calls.get(node)
        if call is not None and is_layer(gm, node):
            layer = layer_of(gm, node)
            axis = None if isinstance(layer, nn.Linear) else channel_axis(layer)
            self._demand(data_input(node), node, call.activations, {axis})
        if call is not None and is_product(gm, node):
            for operand in node.all_input_nodes:
                self._demand(operand, node, call.activations, {None})
        others = self._others(node)
        if not others:
            for average in self._averages.pop(node, ()):
                self._demand(node, average, self.spec(average), self._demands[average].axes)
        result = self._quantized_result(node)
        if result is not None:
            demand = self._demands.setdefault(node, _Demand(result, {None}))
            demand.readers = readers(gm, node)
            self._places.add(node)
            self._for_all.add(node)
        elif node in self._demands:
            self._settle(node, is_whole=not others)
        elif node in self._relus:
            if not others:
                self._operate(node, self._demands[self._relus[node]])
        elif node.op == "output" or (self._leads_on(node) and set(others) <= self._neutral):
            self._neutral.add(node)

    def _quantized_result(self, node: fx.Node) -> TensorSpec | None:
        """Return the spec of the result of a layer that must be quantized, or of its ReLU's."""
        known = record(node)
        layer = data_input(node) if known.fused_into else node
        call = None if layer is None or known.relu else self._calls.get(layer)
        if layer is None or call is None or not is_layer(self._gm, layer):
            return None
        needed = target_name(self._gm, layer) in self._target.quantized_results
        return call.activations if needed else None

    def _others(self, node: fx.Node) -> list[fx.Node]:
        """Return those that want to see the float value of `node`."""
        if self._change(node) is not None and node in self._demands and not self.is_late(node):
            return []
        known = self._demands[node].readers if node in self._demands else []
        served = {*known, *self._averages.get(node, ()), self._relus.get(node)}
        is_demanded = bool(known or self._averages.get(node) or node in self._relus)
        others = [each for each in readers(self._gm, node) if each not in served]
        if not is_demanded or self._returns_floats(node):
            return others
        return [each for each in others if each not in self._neutral]

    def _leads_on(self, node: fx.Node) -> bool:
        operation, source = operation_of(self._gm, node), data_input(node)
        if operation.kind == "relu" and source is not None:
            return self._leads_on(source)
        return operation.keeps_values or operation.kind in _LEADS_ON

    def _returns_floats(self, node: fx.Node) -> bool:
        operation = operation_of(self._gm, node)
        may_end_a_kernel = operation.kind in ("layer", "relu") or operation.activation is not None
        has_floats = self._target.float_outputs or not may_end_a_kernel
        return has_floats and not self._leads_on(node)

    def _change(self, node: fx.Node) -> fx.Node | None:
        """Return the last call that changes the result of `node` in place while it is read."""
        change = self._changed.get(node)
        is_before = change is not None and self._position[node] < self._position[change]
        return change if is_before else None  # a view that was taken later is as it stays

    def _settle(self, node: fx.Node, *, is_whole: bool) -> None:
        """Quantize the demanded result of `node` here, or hand the demand to its inputs."""
        demand, source = self._demands[node], data_input(node)
        operation, name = operation_of(self._gm, node), target_name(self._gm, node)
        is_float = self._returns_floats(node) and not self._neutral.isdisjoint(node.users)
        is_forced = name in self._target.quantized_results and name != "add" and not is_float
        if is_forced and not self.is_late(node):
            is_whole, demand.readers = True, readers(self._gm, node)
            self._for_all.add(node)
        if not is_whole or self.is_late(node):
            parts = demand.readers if operation.kind == "split" else [node]
            return self._places.update(parts)
        is_changed = self._change(node) is not None
        demand.readers += [each for each in node.users if each in self._neutral or is_changed]
        if name not in self._target.hands_on:
            self._places.add(node)
            return self._operate(node, demand)
        if operation.concatenated:
            for each in operation.concatenated:
                self._demand(each, node, demand.spec, {None})
        else:
            axes = demand.axes if operation.keeps_channels else {None}
            self._demand(source, node, demand.spec, axes)
            self._places.update([node] if operation.selects and not is_changed else [])
        return None

    def _operate(self, node: fx.Node, demand: _Demand) -> None:
        """Let an operation work on integers, if the target has it so.

        An addition does on all operands but a layer's result to add into: of two such layers, the
        one executed last, whose accumulator the kernel still holds.
        """
        operation, source = operation_of(self._gm, node), data_input(node)
        if operation.kind == "relu" and source is not None and is_add(self._gm, source):
            self._relus[source] = node
            return
        if target_name(self._gm, node) not in self._target.integer_operations:
            return
        if operation.kind == "softmax" and any(is_product(self._gm, e) for e in demand.readers):
            return  # what it reads may be masked by -inf, which is on no grid
        axes = demand.axes if operation.keeps_channels or operation.kind == "add" else {None}
        if operation.kind == "average" and source is not None:
            self._averages.setdefault(source, []).append(node)
            return
        operands = list(operation.concatenated or node.all_input_nodes)
        spec: TensorSpec | None = demand.spec
        if operation.kind == "add":
            operands = [each for each in node.args if isinstance(each, fx.Node)]
            spec = self._calls[node].activations if node in self._calls else None
            demand.readers += [self._relus[node]] if node in self._relus else []
        layers = [each for each in operands if self._can_add_into(each)]
        if operation.kind == "add" and layers and self._target.adds_into_layers:
            operands.remove(max(layers, key=self._position.__getitem__))
        for operand in operands:
            self._demand(operand, node, spec, axes)

    def _can_add_into(self, node: fx.Node) -> bool:
        call = self._calls.get(node)
        is_quantized = call not in (None, CallSpec(None, None)) and is_layer(self._gm, node)
        kinds = [operation_of(self._gm, user).kind for user in node.users]
        return is_quantized and len(kinds) - kinds.count("rank") == 1

    def _demand(
        self,
        node: fx.Node | None,
        reader: fx.Node,
        spec: TensorSpec | None,
        axes: Set[int | None],
    ) -> None:
        """Note that `reader` reads the result of `node` as integers."""
        if node is None or spec is None:
            return
        demand = self._demands.setdefault(node, _Demand(spec, set()))
        demand.spec = finer(demand.spec, spec)
        demand.axes.update(axes)
        demand.readers.append(reader)
