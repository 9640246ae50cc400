"""The units of block reconstruction: residual blocks, and single layers outside of them.

    x ─┬─ conv1 ─ relu1 ─ conv2 ─┐
       └─────────────────────────add ─ relu2

Where two ways meet, in an addition, a concatenation, a product, the block is all that lies between
the join and the node where the ways parted: the nearest one through which everything passes that
reaches the join, its immediate dominator. A ReLU behind the join belongs to it. Nothing inside may
be read from outside. Of blocks inside of each other the largest counts (Li et al., "BRECQ", 2021:
residual blocks are where layers depend on each other most).

Layers in a row outside of them make a block, too, up to one without an activation function, three
at most: the expanded, depthwise and projecting convolutions of MobileNetV2, where its resolution
changes; a last convolution, the pooling, and the linear layer that gives the logits.

Nothing goes by names: blocks are found from the data flow, which sizes and parameters are no part
of. A quantizer that the block alone reads belongs to it, so that its scale is learned there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxquant.graph.chains import Chain
from fxquant.graph.operations import module_of, operation_of, relu_bounds
from fxquant.graph.records import refuse
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.figures import LearnedRounding
from fxquant.modules.own import as_own
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.rounding.activations import Identity
from fxquant.rounding.blocks.flow import Flow
from fxquant.rounding.subgraphs import Subgraph, find_subgraphs


@dataclass(frozen=True, eq=False)
class Path:
    """One way through a block: what `nodes` make of the entry's value."""

    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    """In execution order, parameters and sizes that they read included, the entry not."""
    is_ahead: bool = False
    """The entry is not final when the block's turn comes: its float value stands in."""


@dataclass(frozen=True, eq=False)
class Block:
    """Layers that are reconstructed together."""

    name: str
    paths: tuple[Path, ...]
    """One; of a single layer that is called several times, one for each call."""
    subgraphs: tuple[Subgraph, ...]
    """Its quantized layers."""
    quantizers: tuple[FakeQuantize, ...]
    """Those that are called nowhere else, so that their scales can be learned with the block."""

    @property
    def cost(self) -> int:
        """About how long learning the block takes, in weights."""
        return sum(each.cost for each in self.subgraphs)

    @property
    def rounding(self) -> LearnedRounding | None:
        """What was learned of the block; its layers share it."""
        return self.subgraphs[0].rounding

    def values(self) -> list[Tensor]:
        """Return copies of what learning may change: of layers, and scales of activations."""
        of_layers = [value for each in self.subgraphs for value in each.values()]
        return [each.clone() for each in (*of_layers, *(each.scale for each in self.quantizers))]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the block."""
        return {
            "layers": [each.state() for each in self.subgraphs],
            "scales": [quantizer.scale.cpu() for quantizer in self.quantizers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        for subgraph, of_layer in zip(self.subgraphs, state["layers"], strict=True):
            subgraph.restore(of_layer)
        for quantizer, scale in zip(self.quantizers, state["scales"], strict=True):
            quantizer.scale.copy_(scale)


def find_blocks(gm: fx.GraphModule, max_layers: int = 8) -> list[Block]:
    """Return the blocks of a quantized graph, each behind all those that its entry depends on.

    What cannot be learned as a block is recorded, with the reason, on the join or the layer.

    Args:
        gm: a graph with `QuantizedLayer`s.
        max_layers: the most quantized layers in a block; DenseNets and U-Nets part for long.
    """
    flow = Flow(gm)
    subgraphs = find_subgraphs(gm)
    regions = _choose(flow, subgraphs, max_layers)
    blocks: dict[int, Block] = {}  # by the place of the first layer: that one waits for the entry
    covered: set[Subgraph] = set()
    for region in regions:
        inside = [each for each in subgraphs if each.calls[0].node in region.nodes]
        covered.update(inside)
        name = _common_name([each.name for each in inside])
        blocks[subgraphs.index(inside[0])] = _block(flow, name, [region.path()], inside)
    for region, inside in _bottlenecks(flow, [each for each in subgraphs if each not in covered]):
        covered.update(inside)
        name = _common_name([each.name for each in inside])
        blocks[subgraphs.index(inside[0])] = _block(flow, name, [region.path()], inside)
    for number, subgraph in enumerate(subgraphs):
        if subgraph in covered:
            continue
        paths = list(_paths(flow, subgraph))
        if paths:
            blocks[number] = _block(flow, subgraph.name, paths, [subgraph])
    return [blocks[number] for number in sorted(blocks)]


def is_quantizer(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node rounds an activation."""
    return as_own(module_of(gm, node)).rounds


class _Region:
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
        return next(
            (each for each in read if each in self._flow.inputs and each not in known), None
        )

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
        return Path(self.entry, self.exit, tuple(nodes), is_ahead)


def _choose(flow: Flow, subgraphs: Sequence[Subgraph], max_layers: int) -> list[_Region]:
    """Return the largest regions that can be learned as blocks; record why others cannot."""
    chosen: list[_Region] = []
    refused: list[_Region] = []
    taken: set[fx.Node] = set()
    for region in sorted(_regions(flow), key=lambda each: -len(each.nodes)):
        layers = [each for each in subgraphs if any(c.node in region.nodes for c in each.calls)]
        if not layers or region.nodes & taken:
            continue
        reason = region.why_not(max_layers, layers)
        if reason is None:
            chosen.append(region)
            taken |= region.nodes
        elif not any(region.exit in other.nodes for other in refused):
            refuse(region.exit, "not learned as one block", reason)
            refused.append(region)
    return chosen


def _regions(flow: Flow) -> Iterator[_Region]:
    """Yield, for each join, what lies between it and the node where its ways parted."""
    for join, sources in flow.inputs.items():
        entry = flow.dominator[join]
        if len(sources) < 2 or entry is None or join.op == "output":
            continue
        nodes, waiting = {join}, [join]
        while waiting:
            new = [
                each
                for each in flow.inputs[waiting.pop()]
                if each is not entry and each not in nodes
            ]
            nodes.update(new)
            waiting += new
        exit = _relu_behind(flow, join)
        yield _Region(flow, entry, exit, {*nodes, exit})


def _relu_behind(flow: Flow, join: fx.Node) -> fx.Node:
    """Return the ReLU that alone reads the join, or the join itself."""

    def is_relu(gm: fx.GraphModule, node: fx.Node) -> bool:
        return flow.inputs[node] == [join] and relu_bounds(gm, node) is not None

    return Chain.behind(flow.gm, join, flow.users).take(is_relu).last


def _bottlenecks(
    flow: Flow, layers: Sequence[Subgraph], most: int = 3
) -> Iterator[tuple[_Region, list[Subgraph]]]:
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
            longer = _Region(flow, in_front.entry, region.exit, nodes)
            if longer.why_not(most, [before, *chain]) is not None:
                break
            chain, region = [before, *chain], longer
        if len(chain) > 1:
            taken.update(chain)
            yield region, chain


def _may_be_joined(flow: Flow, layer: Subgraph) -> bool:
    return len(layer.calls) == 1 and not layer.ahead and layer.calls[0].node in flow.inputs


def _region_of(flow: Flow, layer: Subgraph) -> _Region:
    (call,) = layer.calls
    return _Region(flow, flow.inputs[call.node][0], call.output, {call.node, call.output})


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


def _paths(flow: Flow, subgraph: Subgraph) -> Iterator[Path]:
    """Yield a path for each call of a layer that is a block by itself; none if one cannot be."""
    regions = []
    for call in subgraph.calls:
        if call.node not in flow.inputs:
            refuse(call.node, "rounded to nearest", "its input does not depend on the model's")
            return
        entry = flow.inputs[call.node][0]
        region = _Region(flow, entry, call.output, {call.node, call.output})
        foreign = region.foreign()
        if foreign is not None:
            refuse(call.node, "rounded to nearest", f"it needs the size of {foreign.name}")
            return
        regions.append((region, call.node in subgraph.ahead))
    yield from (region.path(is_ahead) for region, is_ahead in regions)


def _block(flow: Flow, name: str, paths: Sequence[Path], layers: Sequence[Subgraph]) -> Block:
    inside = {node for path in paths for node in path.nodes}
    modules = dict.fromkeys(module_of(flow.gm, node) for path in paths for node in path.nodes)
    quantizers = [
        module
        for module in modules
        if isinstance(module, FakeQuantize) and inside.issuperset(flow.callers[module])
    ]
    return Block(name, tuple(paths), tuple(layers), tuple(quantizers))


def _common_name(names: Sequence[str]) -> str:
    """Return what qualified names start with, part by part; without that, the first and last.

    >>> _common_name(["layer1.0.conv1", "layer1.0.conv2"])
    'layer1.0'
    >>> _common_name(["conv1", "conv2"])
    'conv1 to conv2'
    """
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    same = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*parts, strict=False))
    return ".".join(each[0] for each in same) or f"{names[0]} to {names[-1]}"
