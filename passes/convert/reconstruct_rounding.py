"""Learn the rounding of each weight, layer by layer, on real data: AdaRound and beyond.

Before:  conv = QuantizedConv2d(x)     # each weight rounded to nearest
After:   conv = QuantizedConv2d(x)     # each rounded so that the layer's output is closest

The float graph and the quantized one run side by side (`fxquant.streaming.stream`), each node once.
At a quantized layer the inputs that the quantized graph gives it and the float graph's output
behind the activation are at hand: rows of them are drawn (`fxquant.rounding.pool`), the rounding is
learned (`fxquant.rounding.methods.learners`), and the streams go on with the new weight. What was
learned is kept only if it is no worse than rounding to nearest on samples that it did not learn
from.

With `parallel=True` inputs are the float network's, as if each layer were quantized alone.
Under `torch.distributed` each rank runs on its own batches, and learns some outputs of each layer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import fx

from fxquant.graph.submodules import own_all
from fxquant.modules.figures import LearnedRounding
from fxquant.modules.layers import as_layer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.in_turn import TITLES, learn_in_turn
from fxquant.rounding.methods.learners import Learned, learn
from fxquant.rounding.pool import RowPool
from fxquant.rounding.side_by_side import LayersSideBySide, Lesson
from fxquant.rounding.subgraphs import Subgraph, find_subgraphs
from fxquant.streaming.distributed import sum_over_ranks
from fxquant.streaming.value_store import ValueStore


@dataclass(frozen=True, eq=False)
class ReconstructRounding(Lesson, Pass):
    """Learn the rounding of each weight, layer by layer."""

    starts_from = CONVERTED

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise where there is no data, or the reference is not of the same graph."""
        calls = [call for each in find_subgraphs(graph_module) for call in each.calls]
        self.require(node for call in calls for node in (call.node, call.output))

    @torch.no_grad()
    def run(self, gm: fx.GraphModule) -> bool:
        """Reconstruct the layers in turn; modified if a single weight changed."""
        own_all(gm, QuantizedLayer)
        subgraphs = find_subgraphs(gm)
        if self.options.parallel:
            subgraphs = [_all_ahead(subgraph) for subgraph in subgraphs]
        with ValueStore(self.options.max_bytes) as store:
            sides = LayersSideBySide(self, gm, subgraphs, store)
            one, title = partial(self._learn, sides), TITLES[self.options.method]
            return learn_in_turn(subgraphs, sides, one, self.how, title)

    def _learn(self, sides: LayersSideBySide, subgraph: Subgraph, number: int) -> None:
        start = time.perf_counter()
        layer = subgraph.layer
        reference = as_layer(self.reference.get_submodule(subgraph.name))
        pool = RowPool(subgraph.name, reference, sides.num_samples(subgraph), self.options, number)
        for inputs, targets in sides.rows(subgraph):
            pool.add(inputs, targets)
        rounding = Rounding.of(layer, reference)
        learned_from, judged = pool.rows(rounding.weight, reference.bias)
        learned = learn(rounding, learned_from, judged, subgraph.activation, self.options)
        both = (Learned.nearest(rounding), learned)
        errors = torch.stack([each.error(rounding, judged, subgraph.activation) for each in both])
        sum_over_ranks(errors)
        signal = errors[0][1].item()
        result = LearnedRounding(
            method=self.options.method,
            steps=self.options.steps if self.options.method != "gram" else 0,
            seconds=time.perf_counter() - start,
            error_nearest=errors[0][0].item() / max(signal, 1e-300),
            error_learned=errors[1][0].item() / max(signal, 1e-300),
        )
        if result.kept:
            learned.write_to(layer, rounding, reference)
        layer.weight_sqnr = sqnr(reference.weight.detach().float(), layer.weight.float())
        layer.rounding = result


def _all_ahead(subgraph: Subgraph) -> Subgraph:
    """Return the layer as one whose inputs are all the float network's."""
    return replace(subgraph, ahead=frozenset(call.node for call in subgraph.calls))
