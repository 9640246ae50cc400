"""The units of reconstruction: a quantized layer, all its calls, and the activation behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.chains import Chain
from fxquant.graph.mutations import not_followed
from fxquant.graph.operations import data_input, module_of, operation_of, reads_values
from fxquant.graph.records import refuse
from fxquant.modules.figures import LearnedRounding
from fxquant.modules.layers import as_layer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.rounding.methods.activations import Activation, Clamp, Differentiated, Identity


@dataclass(frozen=True)
class Call:
    """One call of the layer: the node, and the node whose float value is the target."""

    node: fx.Node
    output: fx.Node


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A quantized layer with everything that its reconstruction looks at."""

    name: str
    layer: QuantizedLayer
    calls: tuple[Call, ...]
    activation: Activation
    ahead: frozenset[fx.Node]
    """Those calls whose input is not final when the layer's turn comes: float inputs stand in."""

    @property
    def cost(self) -> int:
        """About how long learning the layer takes, in weights."""
        return self.layer.weight_integers.numel() + 100_000

    @property
    def rounding(self) -> LearnedRounding | None:
        """What was learned of the layer."""
        return self.layer.rounding

    def values(self) -> list[Tensor]:
        """Return what learning may change: the weight, and the bias if there is one."""
        return [self.layer.weight, *([] if self._bias is None else [self._bias])]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the layer."""
        return {
            "integers": self.layer.weight_integers.cpu(),
            "scale": self.layer.weight_scale.cpu(),
            "bias": None if self._bias is None else self._bias.detach().cpu(),
            "sqnr": self.layer.weight_sqnr,
            "rounding": vars(self.layer.rounding),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        layer = self.layer
        layer.weight_integers.copy_(state["integers"])
        layer.weight_scale.copy_(state["scale"])
        if state["bias"] is not None:
            layer.set_bias(state["bias"].to(layer.weight_integers.device))
        layer.weight_sqnr = state["sqnr"]
        layer.rounding = LearnedRounding(**state["rounding"])

    @property
    def _bias(self) -> Tensor | None:
        return as_layer(self.layer).bias


def find_subgraphs(gm: fx.GraphModule) -> list[Subgraph]:
    """Return the quantized layers of `gm`, each behind all those that its inputs depend on.

    A layer that is called several times waits until the inputs of all its calls are final. Where
    they depend on one another, as in a recurrence, the first call counts, and the others are
    `ahead`. Left out, and recorded, are those at whose input or target a change through a view is
    not followed (`fxquant.graph.mutations.not_followed`).
    """
    calls: dict[QuantizedLayer, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, QuantizedLayer):
            calls.setdefault(module, []).append(node)
    found = [_subgraph(gm, layer, calls[layer], ahead) for layer, ahead in _in_order(gm, calls)]
    missed = not_followed(gm)
    return [each for each in found if not _misses_a_change(each, missed)]


def _misses_a_change(subgraph: Subgraph, missed: dict[fx.Node, fx.Node]) -> bool:
    """Say, and record, whether values that the layer would learn from are not right."""
    nodes = [each for call in subgraph.calls for each in (call.node, call.output)]
    change = next((missed[node] for node in nodes if node in missed), None)
    if change is not None:
        reason = f"{change.name} changes a tensor in place that is read through a view of it"
        refuse(subgraph.calls[0].node, "not learned from values", reason)
    return change is not None


def _in_order(
    gm: fx.GraphModule, calls: dict[QuantizedLayer, list[fx.Node]]
) -> Iterator[tuple[QuantizedLayer, frozenset[fx.Node]]]:
    bits: dict[Any, int] = {layer: 1 << number for number, layer in enumerate(calls)}
    behind: dict[fx.Node, int] = {}  # the layers that a node's value depends on, a bit each
    for node in gm.graph.nodes:
        behind[node] = 0
        for source in node.all_input_nodes:
            if not reads_values(gm, node, source):
                continue
            behind[node] |= behind[source] | bits.get(module_of(gm, source), 0)
    needs = _closure({layer: [behind[node] for node in calls[layer]] for layer in calls}, bits)
    pending = (1 << len(calls)) - 1
    waiting = list(calls)
    while waiting:
        layer = next(
            layer
            for layer in waiting
            if all(  # whatever it still needs needs it too, as in a recurrence
                needs[other] & bits[layer] for other in waiting if needs[layer] & bits[other]
            )
        )
        waiting.remove(layer)
        ahead = frozenset(node for node in calls[layer] if behind[node] & pending)
        pending &= ~bits[layer]
        yield layer, ahead


def _closure(
    needed: dict[QuantizedLayer, list[int]], bits: dict[QuantizedLayer, int]
) -> dict[QuantizedLayer, int]:
    """Return all that each layer needs for its calls, and what that needs, a bit each."""
    needs = {layer: reduce(or_, masks, 0) for layer, masks in needed.items()}
    for through, bit in bits.items():
        for layer in needs:
            if needs[layer] & bit:
                needs[layer] |= needs[through]
    return needs


def _subgraph(
    gm: fx.GraphModule, layer: QuantizedLayer, nodes: list[fx.Node], ahead: frozenset[fx.Node]
) -> Subgraph:
    found = [_activation_behind(gm, node) for node in nodes]
    same = all(activation == found[0][0] for activation, _ in found)
    calls = tuple(
        Call(node, output if same else node) for node, (_, output) in zip(nodes, found, strict=True)
    )
    activation = found[0][0] if same else Identity()
    return Subgraph(str(nodes[0].target), layer, calls, activation, ahead)


def _activation_behind(gm: fx.GraphModule, node: fx.Node) -> tuple[Activation, fx.Node]:
    """Return the activation function behind a call, and the node that computes it."""
    output = Chain.behind(gm, node).take(_activation).last
    return _activation(gm, output) or Identity(), output


def _activation(gm: fx.GraphModule, node: fx.Node) -> Activation | None:
    """Return the function that `node` computes of one tensor, None if it computes no such one."""
    if node.all_input_nodes != [data_input(node)]:
        return None
    operation, module = operation_of(gm, node), module_of(gm, node)
    if operation.bounds is not None:
        return Clamp(*operation.bounds)
    if not operation.is_elementwise:
        return None
    if module is not None:
        return Differentiated(module)
    function = getattr(torch, node.target) if isinstance(node.target, str) else node.target
    return Differentiated(_Function(function, node.args[1:], dict(node.kwargs)))


@dataclass(frozen=True)
class _Function:
    """A function with all but its first argument given."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, y: Tensor) -> Tensor:
        options = {name: value for name, value in self.kwargs.items() if name != "input"}
        result = self.function(y, *self.args, **options)
        assert isinstance(result, Tensor)
        return result
