"""The units of block reconstruction: residual blocks, and single layers outside of them.

    x ─┬─ conv1 ─ relu1 ─ conv2 ─┐
       └─────────────────────────add ─ relu2

Where two ways meet, in an addition, a concatenation, a product, the block is all that lies between
the join and the node where the ways parted: the nearest one through which everything passes that
reaches the join, its immediate dominator. A ReLU behind the join belongs to it. Nothing inside may
be read from outside. What no rounding has reached, such as an attention's mask, may come from
elsewhere: it is the block's context. Of blocks inside of each other the largest counts (Li et al.,
"BRECQ", 2021: residual blocks are where layers depend on each other most).

Layers in a row outside of them make a block, too, up to one without an activation function, three
at most: the expanded, depthwise and projecting convolutions of MobileNetV2, where its resolution
changes; a last convolution, the pooling, and the linear layer that gives the logits.

Nothing goes by names: blocks are found from the data flow, which sizes and parameters are no part
of. A quantizer that the block alone reads belongs to it, so that its scale is learned there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxquant.capture.recording.objects import filled
from fxquant.graph.chains import Chain
from fxquant.graph.mutations import is_opaque
from fxquant.graph.operations import module_of, relu_bounds
from fxquant.graph.records import refuse
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.figures import LearnedRounding
from fxquant.modules.own import as_own
from fxquant.rounding.blocks.flow import Flow
from fxquant.rounding.blocks.in_a_row import layers_in_a_row
from fxquant.rounding.blocks.region import Path, Region
from fxquant.rounding.subgraphs import Subgraph, find_subgraphs


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
    regions = _choose((flow, Flow(gm, with_context=True)), subgraphs, max_layers)
    blocks: dict[int, Block] = {}  # by the place of the first layer: that one waits for the entry
    covered: set[Subgraph] = set()
    for region in regions:
        inside = [each for each in subgraphs if each.calls[0].node in region.nodes]
        covered.update(inside)
        name = _common_name([each.name for each in inside])
        blocks[subgraphs.index(inside[0])] = _block(flow, name, [region.path()], inside)
    for region, inside in layers_in_a_row(
        flow, [each for each in subgraphs if each not in covered]
    ):
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


def _choose(flows: Iterable[Flow], subgraphs: Sequence[Subgraph], max_layers: int) -> list[Region]:
    """Return the largest regions that can be learned as blocks; record why others cannot."""
    chosen: list[Region] = []
    refused: dict[Region, str] = {}
    taken: set[fx.Node] = set()
    regions = [region for flow in flows for region in _regions(flow)]
    for region in sorted(regions, key=lambda each: -len(each.nodes)):
        layers = [each for each in subgraphs if any(c.node in region.nodes for c in each.calls)]
        if not layers or region.nodes & taken:
            continue
        reason = region.why_not(max_layers, layers)
        if reason is None:
            chosen.append(region)
            taken |= region.nodes
        elif not any(region.exit in other.nodes for other in refused):
            refused[region] = reason
    for region, reason in refused.items():
        if region.exit not in taken:
            refuse(region.exit, "not learned as one block", reason)
    return chosen


def _regions(flow: Flow) -> Iterator[Region]:
    """Yield, for each join, what lies between it and the node where its ways parted."""
    for join, sources in flow.inputs.items():
        entry = flow.dominator[join]
        if len(sources) < 2 or entry is None or not _gives_tensor(join):
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
        yield Region(flow, entry, exit, {*nodes, exit})


def _gives_tensor(join: fx.Node) -> bool:
    """Say whether what is joined is one tensor, not an object of several that a model returns."""
    is_object = isinstance(join.target, type) or join.target is filled
    return join.op != "output" and not is_object and not is_opaque(join)


def _relu_behind(flow: Flow, join: fx.Node) -> fx.Node:
    """Return the ReLU that alone reads the join, or the join itself."""

    def is_relu(gm: fx.GraphModule, node: fx.Node) -> bool:
        return flow.inputs[node] == [join] and relu_bounds(gm, node) is not None

    return Chain.behind(flow.gm, join, flow.users).take(is_relu).last


def _paths(flow: Flow, subgraph: Subgraph) -> Iterator[Path]:
    """Yield a path for each call of a layer that is a block by itself; none if one cannot be."""
    regions = []
    for call in subgraph.calls:
        if call.node not in flow.inputs:
            refuse(call.node, "rounded to nearest", "its input does not depend on the model's")
            return
        entry = flow.inputs[call.node][0]
        region = Region(flow, entry, call.output, {call.node, call.output})
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
