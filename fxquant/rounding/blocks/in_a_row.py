"""Layers in a row, outside of residual blocks, that are learned as one.

    conv1 ─ relu6 ─ depthwise ─ relu6 ─ conv2        conv ─ relu ─ pool ─ fc

A layer without an activation function behind it ends a row: what is in front of it makes up for its
errors, through functions that are not linear; what is behind it reads a narrow tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from fxquant.rounding.blocks.flow import Flow
from fxquant.rounding.blocks.region import Region
from fxquant.rounding.methods.activations import Identity
from fxquant.rounding.subgraphs import Subgraph


def layers_in_a_row(
    flow: Flow, layers: Sequence[Subgraph], most: int = 3
) -> Iterator[tuple[Region, list[Subgraph]]]:
    """Yield chains of layers that are in no block and end in one without an activation function.

    Args:
        flow: of the graph.
        layers: to choose from.
        most: the most of them in a chain.
    """
    ends = {each.calls[0].output: each for each in layers if _may_be_joined(flow, each)}
    taken: set[Subgraph] = set()
    for last in ends.values():
        if not isinstance(last.activation, Identity) or last in taken:
            continue
        chain, region = [last], _region_of(flow, last)
        while len(chain) < most:
            before, between = _in_front(flow, region.entry, ends)
            if before is None or before in taken or isinstance(before.activation, Identity):
                break
            in_front = _region_of(flow, before)
            nodes = {*in_front.nodes, *between, *region.nodes}
            longer = Region(flow, in_front.entry, region.exit, nodes)
            if longer.why_not(most, [before, *chain]) is not None:
                break
            chain, region = [before, *chain], longer
        if len(chain) > 1:
            taken.update(chain)
            yield region, chain


def _may_be_joined(flow: Flow, layer: Subgraph) -> bool:
    return len(layer.calls) == 1 and not layer.ahead and layer.calls[0].node in flow.inputs


def _region_of(flow: Flow, layer: Subgraph) -> Region:
    (call,) = layer.calls
    return Region(flow, flow.inputs[call.node][0], call.output, {call.node, call.output})


def _in_front(
    flow: Flow, entry: fx.Node, ends: Mapping[fx.Node, Subgraph]
) -> tuple[Subgraph | None, list[fx.Node]]:
    """Return the layer whose result alone `entry` is made of, and the nodes behind the layer."""
    between: list[fx.Node] = []
    while entry not in ends:
        if len(flow.inputs[entry]) != 1:
            return None, []
        between.append(entry)
        (entry,) = flow.inputs[entry]
    return ends[entry], between
