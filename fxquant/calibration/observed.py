"""What the observers of a model have seen, where they stand, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import fx, nn

from fxquant.capture.naming import find_regions, node_name
from fxquant.capture.region import Region
from fxquant.errors import CalibrationError
from fxquant.graph.chains import insert_after, take_out
from fxquant.graph.mutations import changed_while_read
from fxquant.graph.operations import (
    data_input,
    module_of,
    readers,
    source_of,
    sources_of_values,
)
from fxquant.graph.records import annotate, record, refuse
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.observers import Observer
from fxquant.modules.own import own_modules
from fxquant.streaming.distributed import gather_objects, num_ranks

Observers: TypeAlias = dict[fx.Node, Observer]
"""Observers by their calls."""


def find_observers(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, Observer]]:
    """Yield each observer call with the tensor it watches and the module, in execution order."""
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        watched = data_input(node)
        if isinstance(module, Observer) and watched is not None:
            yield node, watched, module


def observers_of_values(gm: fx.GraphModule, observers: Observers) -> dict[fx.Node, list[Observer]]:
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
            seen[node] = [observers[node]] if has_one_range(observers[node]) else []
        elif sources and all(seen.get(each) for each in sources):
            together = [each for source in sources for each in seen[source]]
            seen[node] = list(dict.fromkeys(together))
    return seen


def has_one_range(observer: Observer) -> bool:
    """Say whether its range is one for all channels, and for all batches."""
    return observer.axis is None and not observer.spec.dynamic


class FloatValues:
    """The float values of what is made of observed tensors: the same calls, past the observers.

    Of a tensor that is changed in place there is none: the change is made to what is observed.

    Args:
        gm: copies of calls are put into it.
        observers: by their calls.
        past_all: past those of tensors, too, of which a runtime wants no float reader.
    """

    def __init__(self, gm: fx.GraphModule, observers: Observers, *, past_all: bool = True) -> None:
        self._gm = gm
        self._observers = observers
        self._past_all = past_all
        self._changed = changed_while_read(gm)
        self._known: dict[fx.Node, fx.Node] = {}
        self.read: set[fx.Node] = set()
        """Observed nodes whose float value was asked for."""

    def of(self, node: fx.Node) -> fx.Node:
        """Return the node that computes the float value of `node`."""
        if node not in self._known:
            self._known[node] = self._of(node)
        return self._known[node]

    def _of(self, node: fx.Node) -> fx.Node:
        if node in self._changed:
            return node
        if node in self._observers:
            if record(node).for_all and not self._past_all:
                return node
            self.read.add(source_of(node))
            return source_of(node)
        floats = {each: self.of(each) for each in sources_of_values(self._gm, node)}
        if all(each is in_float for each, in_float in floats.items()):
            return node
        with node.graph.inserting_before(node):
            return node.graph.node_copy(node, lambda each: floats.get(each, each))


def erase_unread(node: fx.Node, observers: Observers) -> None:
    """Erase a call of observed values, and those before it, if nobody reads it any more."""
    sources = [] if node in observers else node.all_input_nodes
    if node.users or node.op not in ("call_module", "call_function", "call_method"):
        return
    node.graph.erase_node(node)
    observers.pop(node, None)
    for each in sources:
        erase_unread(each, observers)


def place_observers(gm: fx.GraphModule) -> Observers:
    """Move each observer to where its quantizer is to stand, and return them by their calls.

    One that saw nothing is taken out, with the reason recorded.
    """
    return {node: observer for node, observer in _placed(gm) if _has_range(gm, node, observer)}


def _placed(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, Observer]]:
    for node, watched, observer in list(find_observers(gm)):
        is_placed = observer.clamp is None or record(watched).fused_into is not None
        if is_placed or observer.spec.dynamic:
            yield node, observer
            continue
        relu, serves = next(iter(node.users)), record(node).serves
        served = None if serves is None else set(serves)
        node.replace_all_uses_with(watched)
        gm.graph.erase_node(node)
        users = [each for each in readers(gm, relu) if served is None or _names(gm, each) & served]
        with insert_after(relu):
            behind = gm.graph.call_module(str(node.target), (relu,))
        annotate(behind, for_all=record(node).for_all)
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


def check_calibrated(model: nn.Module) -> None:
    """Raise `CalibrationError` if no observer saw a batch, or one saw NaN or infinity."""
    bad = nonfinite_tensors(model)
    if bad:
        raise CalibrationError(
            f"calibration: NaN or infinity in {bad[0]!r} (the first of {len(bad)} observed "
            "tensors): look at the input or at the calls that make this tensor, and prepare again"
        )
    observed = [each for gm in find_regions(model).values() for each in find_observers(gm)]
    if observed and all(
        observer.needs_data and observer.num_batches == 0 for _, _, observer in observed
    ):
        raise CalibrationError(
            f"none of the {len(observed)} observed tensors has seen a batch: run "
            "fxquant.calibrate(prepared, batches), or prepared(batch) on some, before convert"
        )


def was_called(gm: fx.GraphModule) -> bool:
    """Say whether calibration ran through `gm`, as far as can be told: it may observe nothing."""
    observers = [observer for _, _, observer in find_observers(gm)]
    return not observers or any(
        observer.num_batches > 0 or not observer.needs_data for observer in observers
    )


def combine_observers(model: nn.Module) -> None:
    """Give every rank of `torch.distributed` what all of them saw, and called."""
    if num_ranks() == 1:
        return
    watching = [module for _, module in own_modules(model) if module.watches]
    ranks = gather_objects([module.state() for module in watching], "what was observed")
    for module, states in zip(watching, zip(*ranks, strict=True), strict=True):
        module.take_in(states)
    notes = [each.calls for each in find_regions(model).values() if isinstance(each, Region)]
    calls = gather_objects([(each.region, each.parts) for each in notes], "what was called")
    for note, told in zip(notes, zip(*calls, strict=True), strict=True):
        note.region = any(was_called for was_called, _ in told)
        note.parts = {name: kind for _, parts in told for name, kind in parts.items()}


def nonfinite_tensors(model: nn.Module) -> list[str]:
    """Return the observed tensors that held NaN or infinity: by name, graph by graph."""
    observed = [
        (node_name(gm, watched), observer)
        for gm in find_regions(model).values()
        for _, watched, observer in find_observers(gm)
    ]
    if not observed:
        return []
    counts = torch.stack([observer.nonfinite for _, observer in observed])  # one wait for a GPU
    return [name for (name, _), count in zip(observed, counts.tolist(), strict=True) if count > 0]
