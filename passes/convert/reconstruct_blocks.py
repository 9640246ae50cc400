"""Learn the roundings of whole residual blocks on real data: BRECQ and QDrop.

Before:  conv1 = QuantizedConv2d(x); relu = ReLU(conv1); conv2 = QuantizedConv2d(relu)
         add = conv2 + x             # each weight rounded to nearest
After:   the same graph, rounded so that `add`'s output, behind its ReLU, is closest

As `ReconstructRounding`, with blocks (`fxquant.rounding.blocks.find`) in place of layers: the float
graph and the quantized one run side by side, each node once; of each block the quantized graph's
input, the float graph's input and the float graph's output are gathered
(`fxquant.rounding.blocks.samples`), the roundings of all its weights and the scales of its
fake-quantizers are learned together (`fxquant.rounding.blocks.learner`), and the streams go on with
what was learned. That is kept only if the block's error is no worse than with weights rounded to
nearest, on samples set aside. A second run goes on from the scales that the first one learned.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from tqdm import tqdm

from fxquant.calibration.batching import num_samples
from fxquant.capture.naming import target_name
from fxquant.errors import CalibrationError, PassError
from fxquant.graph.operations import data_input
from fxquant.graph.rewriting import require_same_nodes
from fxquant.modules.quantized_layer import LearnedRounding
from fxquant.numerics.decibels import sqnr
from fxquant.passes.pipeline import Pass
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.blocks.find import Block, find_blocks, is_quantizer
from fxquant.rounding.blocks.learner import BlockLearner
from fxquant.rounding.blocks.samples import Samples
from fxquant.streaming.checkpoint import Checkpoint
from fxquant.streaming.distributed import num_ranks
from fxquant.streaming.identity import identity_of
from fxquant.streaming.stream import Stream
from fxquant.streaming.value_store import ValueStore

_logger = logging.getLogger("fxquant")


@dataclass(frozen=True, eq=False)
class ReconstructBlocks(Pass):
    """Learn the roundings of the weights, block by block."""

    reference: fx.GraphModule
    """The float model: the same graph before quantization, without observers."""
    batches: Sequence[tuple[Any, ...]]
    """The arguments of each call, on any device."""
    options: Reconstruction = field(default_factory=Reconstruction)
    checkpoint: str | os.PathLike[str] | None = None
    """A folder in which finished blocks are kept, and looked for."""
    progress: bool | None = None
    """Show a bar; None means where there is a terminal."""
    reference_batches: Sequence[tuple[Any, ...]] | None = None
    """What the reference is called with, where something in front of the graph is quantized, so
    that `batches` differ; None: the same."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise where there is no data, several ranks, or a reference of another graph."""
        if len(self.batches) == 0:
            raise CalibrationError("ReconstructBlocks: `batches` is empty: give at least one")
        if num_ranks() > 1:
            raise PassError(
                f"ReconstructBlocks: {num_ranks()} ranks: blocks are learned by one process alone; "
                "run it without torch.distributed, or use ReconstructRounding"
            )
        nodes = [
            node
            for block in find_blocks(graph_module)
            for path in block.paths
            for node in (_float_node(graph_module, path.entry), path.exit)
        ]
        require_same_nodes("ReconstructBlocks", self.reference, nodes)

    @torch.no_grad()
    def run(self, gm: fx.GraphModule) -> bool:
        """Reconstruct the blocks in turn; modified if a single weight or scale changed."""
        blocks = find_blocks(gm)
        if not blocks:
            _logger.warning("ReconstructBlocks: no quantized layer in the graph: nothing to learn")
        checkpoint = None
        if self.checkpoint is not None:
            data = [self.batches]
            if self.reference_batches is not None:
                data.append(self.reference_batches)
            identity = identity_of(gm, self.reference, self.options, data)
            checkpoint = Checkpoint(self.checkpoint, identity)
        with ValueStore(self.options.max_bytes) as store, self._bar(blocks) as bar:
            sides = _Sides(self, gm, blocks, store)
            changed = False
            for number, block in enumerate(blocks):
                name = target_name(gm, block.name)
                bar.set_description(name)
                before = _values(block)
                saved = checkpoint.load(number, block.name) if checkpoint is not None else None
                if saved:
                    sides.skip(block)
                    _restore(block, saved)
                else:
                    self._reconstruct(sides, gm, block, number)
                    if checkpoint is not None:
                        checkpoint.save(number, block.name, _state(block))
                learned = block.subgraphs[0].layer.rounding
                bar.set_postfix_str(f"{name} {learned}")
                bar.update(_cost(block))
                _logger.info("%s: %s", name, learned)
                after = _values(block)
                changed |= not all(map(torch.equal, before, after))
        return changed

    def _bar(self, blocks: list[Block]) -> Any:
        return tqdm(
            total=sum(_cost(block) for block in blocks),
            disable=None if self.progress is None else not self.progress,
            bar_format="{percentage:3.0f}%|{bar:12}| {elapsed}<{remaining} {desc}{postfix}",
        )

    def _reconstruct(self, sides: _Sides, gm: fx.GraphModule, block: Block, number: int) -> None:
        start = time.perf_counter()
        samples = sides.samples(block, number)
        learned = BlockLearner(block, gm, self.reference, samples, self.options).learn()
        result = LearnedRounding(
            method="blocks",
            steps=self.options.steps,
            seconds=(time.perf_counter() - start) / len(block.subgraphs),  # they add up in a report
            error_nearest=learned.error_nearest,
            error_learned=learned.error_learned,
        )
        for subgraph in block.subgraphs:
            layer = subgraph.layer
            if result.kept:
                layer.weight_integers.copy_(learned.integers[layer])
            reference: Any = self.reference.get_submodule(subgraph.name)
            layer.weight_sqnr = sqnr(reference.weight.detach().float(), layer.weight.float())
            layer.rounding = result
        for quantizer in block.quantizers:
            if result.kept:
                quantizer.scale.copy_(learned.scales[quantizer])


class _Sides:
    """Both graphs on the same data, each node of each run once for each batch."""

    def __init__(
        self, each: ReconstructBlocks, gm: fx.GraphModule, blocks: list[Block], store: ValueStore
    ) -> None:
        self._gm, self._options = gm, each.options
        self._nodes = {node.name: node for node in each.reference.graph.nodes}
        batches = each.batches
        self._sizes = [num_samples(batch) for batch in batches]
        self._quantized = Stream(gm, batches, store)
        floats = batches if each.reference_batches is None else each.reference_batches
        self._float = Stream(each.reference, floats, store)
        for block in blocks:
            self._quantized.demand(self._entries(block))
            self._float.demand(self._float_nodes(block))

    def samples(self, block: Block, number: int) -> Samples:
        """Return what goes into the block and what should come out."""
        total = sum(self._sizes) * len(block.paths)
        found = Samples(block.name, total, self._options, number)
        quantized = self._quantized.values(*self._entries(block))
        floats = self._float.values(*self._float_nodes(block))
        for size, inputs, wanted in zip(self._sizes, quantized, floats, strict=True):
            remaining = iter(inputs)
            ends = zip(wanted[::2], wanted[1::2], strict=True)
            for path, (entry, target) in zip(block.paths, ends, strict=True):
                x = entry if path.is_ahead else next(remaining)
                found.add(path, x, entry, target, size)
        found.close()
        return found

    def skip(self, block: Block) -> None:
        """Go past a block that is finished."""
        self._quantized.skip(*self._entries(block))
        self._float.skip(*self._float_nodes(block))

    def _entries(self, block: Block) -> list[fx.Node]:
        return [path.entry for path in block.paths if not path.is_ahead]

    def _float_nodes(self, block: Block) -> list[fx.Node]:
        """Return the entry and the exit of each path in the float graph."""
        nodes = [(_float_node(self._gm, path.entry), path.exit) for path in block.paths]
        return [self._nodes[node.name] for pair in nodes for node in pair]


def _float_node(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the node whose float value corresponds to `node`'s: what a quantizer rounds."""
    while is_quantizer(gm, node):
        source = data_input(node)
        assert source is not None
        node = source
    return node


def _values(block: Block) -> list[Tensor]:
    """Return copies of what may change."""
    integers = [each.layer.weight_integers for each in block.subgraphs]
    return [each.clone() for each in (*integers, *(each.scale for each in block.quantizers))]


def _cost(block: Block) -> int:
    """Return about how long a block takes, in weights."""
    return sum(each.layer.weight_integers.numel() + 100_000 for each in block.subgraphs)


def _state(block: Block) -> dict[str, Any]:
    layers = [each.layer for each in block.subgraphs]
    assert layers[0].rounding is not None
    return {
        "integers": [layer.weight_integers.cpu() for layer in layers],
        "sqnr": [layer.weight_sqnr for layer in layers],
        "rounding": vars(layers[0].rounding),
        "scales": [quantizer.scale.cpu() for quantizer in block.quantizers],
    }


def _restore(block: Block, saved: dict[str, Any]) -> None:
    layers = [each.layer for each in block.subgraphs]
    for layer, integers, weight_sqnr in zip(layers, saved["integers"], saved["sqnr"], strict=True):
        layer.weight_integers.copy_(integers)
        layer.weight_sqnr = weight_sqnr
        layer.rounding = LearnedRounding(**saved["rounding"])
    for quantizer, scale in zip(block.quantizers, saved["scales"], strict=True):
        quantizer.scale.copy_(scale)
