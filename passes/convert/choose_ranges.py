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
`JOINED_COSTS`; a part of a split or slice is taken of the float value, and rounded by itself, where
the whole's would cost it more than `PARTED_COSTS` (`fxquant.graph.placement`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from fxquant.calibration.observed import check_calibrated, find_observers
from fxquant.calibration.quantizer_choice import Quantizer, noise_of, quantizer_of, sharing_cost
from fxquant.graph.chains import insert_after, take_out
from fxquant.graph.mutations import changed_while_read
from fxquant.graph.operations import module_of, operation_of, readers, source_of, sources_of_values
from fxquant.graph.placement import JOINED_COSTS, PARTED_COSTS
from fxquant.graph.records import record, refuse
from fxquant.graph.submodules import Submodules, free_name
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.observers import Observer
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import OBSERVED

_Observers = dict[fx.Node, Observer]


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
        observers = {
            node: observer for node, observer in _placed(gm) if _has_range(gm, node, observer)
        }
        _part(gm, observers)
        _Sharing(gm, observers).insert()
        submodules = Submodules(gm)
        submodules.drop_unused({name.rpartition(".")[0] for name in names})
        return True


def _placed(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, Observer]]:
    """Yield the calls of observers, each where its quantizer is to stand."""
    for node, watched, observer in list(find_observers(gm)):
        if observer.clamp is None or observer.spec.dynamic:
            yield node, observer
            continue
        relu, serves = next(iter(node.users)), record(node).serves
        served = None if serves is None else set(serves)
        node.replace_all_uses_with(watched)
        gm.graph.erase_node(node)
        users = [each for each in readers(gm, relu) if served is None or _names(gm, each) & served]
        with insert_after(relu):
            behind = gm.graph.call_module(str(node.target), (relu,))
        for user in users:
            user.replace_input_with(relu, behind)
        yield behind, observer


def _names(gm: fx.GraphModule, reader: fx.Node) -> set[str]:
    """Return the name of a reader, and of those behind it if it only watches means for them."""
    is_mean = isinstance(module_of(gm, reader), ChannelMean)
    return {reader.name, *(user.name for user in reader.users if is_mean)}


def _has_range(gm: fx.GraphModule, node: fx.Node, observer: Observer) -> bool:
    """Say whether a range can be chosen; an observer that saw nothing is taken out."""
    if observer.num_batches > 0 or not observer.needs_data:
        return True
    refuse(source_of(node), "left in float", "no floating-point value seen in calibration")
    take_out(node)
    return False


def _part(gm: fx.GraphModule, observers: _Observers) -> None:
    """Let each part of a split or slice share with the whole, or read the float value of it."""
    seen, floats = _observers_of_values(gm, observers), _Floats(gm, observers)
    changed = changed_while_read(gm)
    for node, observer in list(observers.items()):
        part = source_of(node)
        if not operation_of(gm, part).selects or part in changed:
            continue
        if seen.get(part) and _is_fixed(observer):
            own, shared = quantizer_of(observer), quantizer_of(*seen[part])
            if sharing_cost(own, shared, [observer]) <= PARTED_COSTS:
                take_out(node)
                del observers[node]
                continue
        in_float = floats.of(part)
        if in_float is not part:
            node.replace_input_with(part, in_float)
            _erase_unused(part, observers)


def _erase_unused(node: fx.Node, observers: _Observers) -> None:
    """Erase a call of observed values, and those before it, if nobody reads it any more."""
    sources = [] if node in observers else node.all_input_nodes
    if node.users or node.op not in ("call_module", "call_function", "call_method"):
        return
    node.graph.erase_node(node)
    observers.pop(node, None)
    for each in sources:
        _erase_unused(each, observers)


class _Floats:
    """The float values of what is made of observed tensors: the same calls, past the observers."""

    def __init__(self, gm: fx.GraphModule, observers: _Observers) -> None:
        self._gm = gm
        self._observers = observers
        self._known: dict[fx.Node, fx.Node] = {}

    def of(self, node: fx.Node) -> fx.Node:
        """Return the node that computes the float value of `node`."""
        if node not in self._known:
            self._known[node] = self._float_of(node)
        return self._known[node]

    def _float_of(self, node: fx.Node) -> fx.Node:
        if node in self._observers:
            return source_of(node)
        floats = {each: self.of(each) for each in sources_of_values(self._gm, node)}
        if all(each is in_float for each, in_float in floats.items()):
            return node
        with node.graph.inserting_before(node):
            return node.graph.node_copy(node, lambda each: floats.get(each, each))


def _observers_of_values(
    gm: fx.GraphModule, observers: _Observers
) -> dict[fx.Node, list[Observer]]:
    """Return, of each result that is made of the values of observed tensors alone, the observers.

    None, where a range is chosen for each channel or each batch, or a tensor is changed in place.
    """
    seen: dict[fx.Node, list[Observer]] = {}
    changed = changed_while_read(gm)
    for node in gm.graph.nodes:
        sources = sources_of_values(gm, node)
        if node in changed:
            seen[node] = []
        elif node in observers:
            seen[node] = [observers[node]] if _is_fixed(observers[node]) else []
        elif sources and all(seen.get(each) for each in sources):
            together = [each for source in sources for each in seen[source]]
            seen[node] = list(dict.fromkeys(together))
    return seen


def _is_fixed(observer: Observer) -> bool:
    return observer.axis is None and not observer.spec.dynamic


class _Sharing:
    """Which quantizer each observed tensor gets, and each concatenation of such tensors.

    Args:
        gm: observers stand where quantizers will.
        observers: by their calls.
    """

    def __init__(self, gm: fx.GraphModule, observers: _Observers) -> None:
        self._gm = gm
        self._observers = observers
        self._seen = _observers_of_values(gm, observers)
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
