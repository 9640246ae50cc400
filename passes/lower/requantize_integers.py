"""Turn integers into those of other parameters in one step.

Before:  dequantize = kernels.dequantize(conv, 0.02, 0)
         quantize = kernels.quantize(dequantize, 0.5, …)
After:   quantize = kernels.requantize(conv, 0.02, 0, 0.5, …)       # uint8

Where the parameters are the same, nothing is left to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.graph.operations import data_input
from fxquant.graph.records import annotate, value_of
from fxquant.int8 import kernels
from fxquant.int8.integers import (
    affine_of,
    drop_unused_dequantize,
    integers_behind,
    is_quantize,
)
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED


@dataclass(frozen=True, eq=False)
class RequantizeIntegers(Pass):
    """Turn integers into those of other parameters in one step."""

    starts_from = CONVERTED

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each `quantize` of what was integers."""
        modified = False
        for node in list(gm.graph.nodes):
            x = integers_behind(data_input(node))
            if x is None or not is_quantize(gm, node):
                continue
            modified = True
            mine, theirs = affine_of(node), affine_of(x)
            if mine == theirs:
                node.replace_all_uses_with(x)
                gm.graph.erase_node(node)
                continue
            with gm.graph.inserting_before(node):
                ends = (mine.scale, mine.zero_point, mine.grid.quant_max)
                arguments = (x, theirs.scale, theirs.zero_point, *ends)
                integers = gm.graph.call_function(kernels.requantize, arguments)
            annotate(integers, integers=mine, value_of=value_of(node))
            name = node.name
            node.replace_all_uses_with(integers)
            gm.graph.erase_node(node)
            integers.name = name
        return modified | drop_unused_dequantize(gm)
