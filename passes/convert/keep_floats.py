"""Let calls read float values where rounding would cost them more than integers save.

Before:  observers_mul = Observer(mul); observers_x = Observer(x)
         add = observers_mul + observers_x
         observers_add = Observer(add); fc = Linear(observers_add)
After:   add = mul + x; observers_add = Observer(add); fc = Linear(observers_add)

An addition adds float values where none of its operands is in integers for any other reason, and
where the steps of its sum would cost an operand more than `ADDED_COSTS`: a branch that adds little
to a stream would be rounded away. Additions that feed such a one, and so are read in float, do so
too. A part of a split or slice is taken of the float value, and observed by itself, where the
whole's parameters would cost it more than `PARTED_COSTS`; else its observer is taken out
(`fxquant.graph.placement`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.calibration.observed import (
    FloatValues,
    Observers,
    check_calibrated,
    erase_unread,
    find_observers,
    has_one_range,
    observers_of_values,
    place_observers,
)
from fxquant.calibration.quantizer_choice import quantizer_of, sharing_cost
from fxquant.graph.chains import take_out
from fxquant.graph.mutations import changed_while_read
from fxquant.graph.operations import (
    data_input,
    is_add,
    is_layer,
    operation_of,
    readers,
    source_of,
    sources_of_values,
)
from fxquant.graph.placement import ADDED_COSTS, PARTED_COSTS
from fxquant.graph.records import record, refuse
from fxquant.graph.submodules import Submodules
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.observers import Observer
from fxquant.numerics.decibels import decibels
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import OBSERVED


@dataclass(frozen=True, eq=False)
class KeepFloats(Pass):
    """Let calls read float values where rounding would cost them more than integers save."""

    starts_from = OBSERVED

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise `CalibrationError` if nothing was calibrated, or what was seen is not finite."""
        check_calibrated(graph_module)

    def run(self, gm: fx.GraphModule) -> bool:
        """Move observers to where quantizers will stand, and take out those that nobody needs."""
        before = {node: str(node.target) for node, _, _ in find_observers(gm)}
        observers = place_observers(gm)
        is_placed = observers.keys() != before.keys()
        has_parts = _part(gm, observers)
        additions = _Additions(gm, observers)
        Submodules(gm).drop_unused(set(before.values()))
        return is_placed or has_parts or additions.modified


def _part(gm: fx.GraphModule, observers: Observers) -> bool:
    """Let each part of a split or slice share with the whole, or read the float value of it.

    Say whether there was any.
    """
    modified = False
    seen, floats = observers_of_values(gm, observers), FloatValues(gm, observers)
    changed = changed_while_read(gm)
    for node, observer in list(observers.items()):
        part = source_of(node)
        if not operation_of(gm, part).selects or part in changed:
            continue
        if seen.get(part) and has_one_range(observer):
            own, shared = quantizer_of(observer), quantizer_of(*seen[part])
            if sharing_cost(own, shared, [observer]) <= PARTED_COSTS:
                take_out(node)
                del observers[node]
                modified = True
                continue
        in_float = floats.of(part)
        if in_float is not part:
            node.replace_input_with(part, in_float)
            erase_unread(part, observers)
            modified = True
    return modified


class _Additions:
    """Which additions add float values.

    Args:
        gm: observers stand where quantizers will.
        observers: by their calls.
    """

    def __init__(self, gm: fx.GraphModule, observers: Observers) -> None:
        self._gm = gm
        self._observers = observers
        self._seen = observers_of_values(gm, observers)
        self._floats = FloatValues(gm, observers, past_all=False)
        self.modified = False
        additions = [node for node in gm.graph.nodes if is_add(gm, node) and self._operands(node)]
        for node in additions:
            cost = self._cost(node)
            if cost > ADDED_COSTS:
                refuse(node, "added in float", f"the steps of its sum are {cost:.0f} dB too coarse")
            if cost > ADDED_COSTS or not any(map(self._is_for_others, self._operands(node))):
                self._read_floats(node)
        for node in reversed(additions):
            if not self._floats.read.isdisjoint(self._sums(node)):
                self._read_floats(node)

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """Return what an addition reads of observed values."""
        return [each for each in node.all_input_nodes if self._seen.get(each)]

    def _sums(self, node: fx.Node) -> list[fx.Node]:
        relus = [each for each in node.users if operation_of(self._gm, each).kind == "relu"]
        return [node, *relus]

    def _cost(self, node: fx.Node) -> float:
        """Return by how many dB the noise of rounding an operand grows with the sum's steps."""
        behind = [each for sum_ in self._sums(node) for each in sum_.users]
        of_sum = next((self._seen[each] for each in behind if each in self._observers), None)
        if not of_sum:
            return 0.0
        seen = [self._seen[each] for each in self._operands(node)]
        varied = [each for each in seen if any((one.high - one.low).any() for one in each)]
        costs = [decibels(_step(of_sum) ** 2, _step(each) ** 2) for each in varied]
        return max(costs, default=0.0)

    def _is_for_others(self, node: fx.Node) -> bool:
        """Say whether an operand is in integers for another reason than an addition."""
        source = data_input(node)
        if any(each is not None and each.op == "get_attr" for each in (node, source)):
            return True  # a constant is rounded once
        if len(readers(self._gm, node)) > 1 or record(node).for_all:
            return True
        if node in self._observers:
            return source is not None and self._is_of_integers(source)
        return any(map(self._is_for_others, sources_of_values(self._gm, node)))

    def _is_of_integers(self, node: fx.Node) -> bool:
        """Say whether a kernel on integers computes it, activation included."""
        operation, source = operation_of(self._gm, node), data_input(node)
        if is_layer(self._gm, node):
            return True
        if operation.kind in ("add", "average"):
            return bool(self._operands(node))
        is_behind = operation.kind == "relu" or operation.activation is not None
        return is_behind and source is not None and self._is_of_integers(source)

    def _read_floats(self, node: fx.Node) -> None:
        for each in self._operands(node):
            value = self._floats.of(each)
            if value is not each:  # else the target wants no reader of the float value
                node.replace_input_with(each, value)
                erase_unread(each, self._observers)
                self.modified = True


def _step(observers: list[Observer]) -> float:
    quantizer = quantizer_of(*observers)
    assert isinstance(quantizer, FakeQuantize)
    return quantizer.scale.item()
