"""Let averages whose input and result are quantized work on integers.

Before:  pool = AdaptiveAvgPool2d(dequantize); quantize = kernels.quantize(pool, 0.01, 0, 255)
After:   pool = kernels.average(quantize_1, …)                       # uint8

Means over whole dimensions are exact sums in int32, rescaled once. Averages over windows work on
the integers in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.graph.chains import Chain
from fxquant.graph.operations import data_input, operation_of
from fxquant.graph.records import annotate
from fxquant.int8 import kernels
from fxquant.int8.integers import (
    affine_of,
    drop_unused_dequantize,
    integers_behind,
    is_quantize,
    replace_chain,
)
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED


@dataclass(frozen=True, eq=False)
class LowerAverages(Pass):
    """Let averages whose input and result are quantized work on integers."""

    starts_from = CONVERTED

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each of them."""
        operations = {node: operation_of(gm, node) for node in gm.graph.nodes}
        averages = {node: each for node, each in operations.items() if each.kind == "average"}
        modified = [_lower(gm, node, each.averaged) for node, each in averages.items()]
        return any(modified) | drop_unused_dequantize(gm)


def _lower(
    gm: fx.GraphModule, node: fx.Node, averaged: tuple[tuple[int, ...], bool] | None
) -> bool:
    """Lower an average, over the dimensions `averaged` or over windows."""
    source, chain = data_input(node), Chain.behind(gm, node).take(is_quantize)
    x, after = integers_behind(source), chain.last
    if source is None or x is None or not is_quantize(gm, after):
        return False
    mine, theirs = affine_of(after), affine_of(x)
    ratio, greatest = theirs.scale / mine.scale, mine.grid.quant_max
    if averaged is None:
        with gm.graph.inserting_before(node):
            wide = gm.graph.call_function(kernels.widen, (x, theirs.zero_point))
        node.replace_input_with(source, wide)
        annotate(node, value_of="")  # it averages the integers
        with gm.graph.inserting_before(after):
            ends = (ratio, mine.zero_point, 0, greatest)
            lowered = gm.graph.call_function(kernels.narrow, (node, *ends))
        replace_chain(Chain.behind(gm, after), lowered)
        return True
    with gm.graph.inserting_before(node):
        dims, keepdim = averaged
        rest = (theirs.zero_point, list(dims), keepdim, ratio, mine.zero_point, greatest)
        lowered = gm.graph.call_function(kernels.average, (x, *rest))
    replace_chain(chain, lowered)
    return True
