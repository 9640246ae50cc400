"""Turn each observer into a fake-quantizer, and let tensors share one where that costs them little.

Before:  observers_relu = Observer(conv); relu = ReLU(observers_relu)
         observers_mul = Observer(mul); conv2 = Conv2d(observers_mul)
         cat = cat([relu, observers_mul]); conv3 = Conv2d(cat)
After:   relu = ReLU(conv); quantizers_cat = FakeQuantize(relu)
         quantizers_mul = FakeQuantize(mul); conv2 = Conv2d(quantizers_mul)
         quantizers_cat_1 = FakeQuantize(quantizers_mul)
         cat = cat([quantizers_cat, quantizers_cat_1]); conv3 = Conv2d(cat)

The quantizer stands behind the ReLU that its observer stood before. Its scale and zero-point spread
the integers over the range that the observer's spec chooses (`fxquant.numerics.activation_ranges`;
report I.B, II.A). One that takes its range from each batch (`fxquant.modules.dynamic_quantize`)
stays before the ReLU, where the distribution is whole.

A concatenation's operands have the parameters of all that it holds. An operand that others read too
keeps its own, and is rounded once more, where the concatenation's would cost it more than
`JOINED_COSTS` (`fxquant.graph.placement`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from fxquant.calibration.observed import (
    Observers,
    check_calibrated,
    find_observers,
    observers_of_values,
    place_observers,
)
from fxquant.calibration.quantizer_choice import Quantizer, noise_of, quantizer_of, sharing_cost
from fxquant.graph.chains import insert_after
from fxquant.graph.operations import operation_of, readers, source_of
from fxquant.graph.placement import JOINED_COSTS
from fxquant.graph.submodules import Submodules, free_name
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import OBSERVED


@dataclass(frozen=True, eq=False)
class ChooseRanges(Pass):
    """Turn each observer into a fake-quantizer."""

    starts_from = OBSERVED

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise `CalibrationError` if nothing was calibrated, or what was seen is not finite."""
        check_calibrated(graph_module)

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each observer; one that saw nothing is removed, with the reason recorded."""
        names = {str(node.target) for node, _, _ in find_observers(gm)}
        if not names:
            return False
        _Sharing(gm, place_observers(gm)).insert()
        submodules = Submodules(gm)
        submodules.drop_unused({name.rpartition(".")[0] for name in names})
        return True


class _Sharing:
    """Which quantizer each observed tensor gets, and each concatenation of such tensors.

    Args:
        gm: observers stand where quantizers will.
        observers: by their calls.
    """

    def __init__(self, gm: fx.GraphModule, observers: Observers) -> None:
        self._gm = gm
        self._observers = observers
        self._seen = observers_of_values(gm, observers)
        self._chosen: dict[fx.Node, Quantizer] = {}
        self._labels: dict[Quantizer, str] = {}
        self._again: list[tuple[fx.Node, fx.Node]] = []
        """Concatenations, and their operands that are to be rounded once more."""
        for node in reversed(gm.graph.nodes):
            if node in observers or self._joins(node):
                self._choose(node)

    def _joins(self, node: fx.Node) -> bool:
        """Say whether it is a concatenation of integers; one that is rounded itself needs none."""
        if not self._seen.get(node) or operation_of(self._gm, node).kind != "concat":
            return False
        return any(each not in self._observers for each in readers(self._gm, node))

    def _choose(self, node: fx.Node) -> None:
        """Choose for a tensor, or for a concatenation as a whole."""
        seen, ends = self._seen.get(node), list(self._ends(node))
        if not seen:  # of each channel, or of each batch
            return self._settle(node, quantizer_of(self._observers[node]))
        joined = {end: self._chosen[end] for end, _ in ends if end is not None}
        chosen = min(joined.values(), key=lambda each: noise_of(seen, each), default=None)
        if chosen is None or any(end is None for end, _ in ends):
            own = quantizer_of(*seen)
            if chosen is None or sharing_cost(own, chosen, seen) > JOINED_COSTS:
                chosen = own
        self._again += [
            (end, via) for end, via in ends if end is not None and joined[end] is not chosen
        ]
        return self._settle(node, chosen)

    def _settle(self, node: fx.Node, chosen: Quantizer) -> None:
        self._chosen[node] = chosen
        is_observed = node in self._observers
        name = str(node.target).rpartition(".")[2] if is_observed else node.name
        self._labels.setdefault(chosen, name)

    def _ends(self, node: fx.Node) -> Iterator[tuple[fx.Node | None, fx.Node]]:
        """Yield where the values of `node` arrive, None for all but concatenations; and by what."""
        for user in readers(self._gm, node):
            if self._joins(user):
                yield user, node
            elif self._seen.get(user) and user not in self._observers:
                yield from self._ends(user)
            else:
                yield None, node

    def insert(self) -> None:
        """Put the quantizers into the graph, in the place of the observers."""
        gm, submodules = self._gm, Submodules(self._gm)
        container = free_name(gm, "quantizers")
        targets: dict[Quantizer, str] = {}

        def call(quantizer: Quantizer, x: fx.Node) -> fx.Node:
            if quantizer not in targets:
                targets[quantizer] = free_name(gm, f"{container}.{self._labels[quantizer]}")
                submodules.put(targets[quantizer], quantizer)
            return gm.graph.call_module(targets[quantizer], (x,))

        quantized: dict[fx.Node, fx.Node] = {}
        for node in [each for each in gm.graph.nodes if each in self._observers]:
            with insert_after(node):
                quantized[node] = call(self._chosen[node], source_of(node))
            node.replace_all_uses_with(quantized[node])
            gm.graph.erase_node(node)
        for join, via in self._again:
            operand = quantized.get(via, via)
            with gm.graph.inserting_before(join):
                again = call(self._chosen[join], operand)
            join.replace_input_with(operand, again)
