"""Learn the roundings of whole residual blocks on real data: BRECQ and QDrop.

Before:  conv1 = QuantizedConv2d(x); relu = ReLU(conv1); conv2 = QuantizedConv2d(relu)
         add = conv2 + x             # each weight rounded to nearest
After:   the same graph, rounded so that `add`'s output, behind its ReLU, is closest

As `ReconstructRounding`, with blocks (`fxquant.rounding.blocks.find`) in place of layers: the float
graph and the quantized one run side by side, each node once; of each block the quantized graph's
input, the float graph's input and the float graph's output are gathered
(`fxquant.rounding.blocks.samples`), the roundings of all its weights and the scales of its
fake-quantizers are learned together (`fxquant.rounding.blocks.learner`), and the streams go on with
what was learned. That is kept only if the block's error is no worse than before, on samples set
aside. By "adaquant" it goes on from the integers and biases that an earlier pass left, as
`ReconstructRounding` with "gram", and a second run from the scales that the first one learned.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from fxquant.errors import PassError
from fxquant.graph.submodules import own_all
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.figures import LearnedRounding
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED
from fxquant.rounding.blocks.find import Block, find_blocks
from fxquant.rounding.blocks.learner import BlockLearner
from fxquant.rounding.blocks.sides import BlocksSideBySide, ends_in_float
from fxquant.rounding.in_turn import TITLES, learn_in_turn
from fxquant.rounding.side_by_side import Lesson
from fxquant.streaming.distributed import num_ranks
from fxquant.streaming.value_store import ValueStore

_NAMES = {"adaround": "blocks", "adaquant": "blocks, AdaQuant"}
"""What a report calls each way to learn a block."""


@dataclass(frozen=True, eq=False)
class ReconstructBlocks(Lesson, Pass):
    """Learn the roundings of the weights, block by block."""

    starts_from = CONVERTED

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise where there is no data, several ranks, or a reference of another graph."""
        if num_ranks() > 1:
            raise PassError(
                f"{num_ranks()} ranks: blocks are learned by one process alone; "
                "run it without torch.distributed, or learn layers, with blocks=False "
                "(ReconstructRounding)"
            )
        blocks = find_blocks(graph_module)
        self.require(node for block in blocks for node in ends_in_float(graph_module, block))

    @torch.no_grad()
    def run(self, gm: fx.GraphModule) -> bool:
        """Reconstruct the blocks in turn; modified if a single weight or scale changed."""
        own_all(gm, QuantizedLayer, FakeQuantize)
        blocks = find_blocks(gm)
        with ValueStore(self.options.max_bytes) as store:
            sides = BlocksSideBySide(self, gm, blocks, store)
            one, title = partial(self._learn, sides), TITLES[self.options.method]
            return learn_in_turn(blocks, sides, one, self.how, title, "blocks")

    def _learn(self, sides: BlocksSideBySide, block: Block, number: int) -> None:
        start = time.perf_counter()
        samples = sides.samples(block, number)
        learned = BlockLearner(block, sides.gm, self.reference, samples, self.options).learn()
        result = LearnedRounding(
            method=_NAMES[self.options.method],
            steps=self.options.steps,
            seconds=(time.perf_counter() - start) / len(block.subgraphs),  # they add up in a report
            error_nearest=learned.error_before,
            error_learned=learned.error_learned,
        )
        for subgraph in block.subgraphs:
            layer = subgraph.layer
            if result.kept:
                learned.layers[layer].write_to(layer)
            reference: Any = self.reference.get_submodule(subgraph.name)
            layer.weight_sqnr = sqnr(reference.weight.detach().float(), layer.weight.float())
            layer.rounding = result
        for quantizer in block.quantizers:
            if result.kept:
                quantizer.scale.copy_(learned.scales[quantizer])
