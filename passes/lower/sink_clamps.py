"""Clamp the channels of integers, in place of those of the floats that are rounded to them.

Before:  relu6_clamp = ChannelClamp(relu6)    # at 6/sᵢ, as `EqualizeLayers` leaves it
         quantize = kernels.quantize(relu6_clamp, 0.02, 0, 255)
After:   quantize = kernels.quantize(relu6, 0.02, 0, 255)
         relu6_clamp = ChannelClamp(quantize)    # uint8

Rounding keeps the order of values, and so a clamp may come behind it, at the integers its bounds
are rounded to: q(min(x, h)) = min(q(x), q(h)). Then the layer in front takes its activation and the
rounding along. Where no bound lies inside of the grid, nothing is left to clamp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxquant.graph.chains import Chain, take_out
from fxquant.graph.operations import module_of
from fxquant.graph.records import annotate, value_of
from fxquant.graph.submodules import Submodules, free_name
from fxquant.int8 import kernels
from fxquant.int8.integers import affine_of, is_quantize
from fxquant.modules.by_channel import ChannelClamp
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED


@dataclass(frozen=True, eq=False)
class SinkClamps(Pass):
    """Clamp the channels of integers, in place of those of the floats."""

    starts_from = CONVERTED

    def run(self, gm: fx.GraphModule) -> bool:
        """Move each `ChannelClamp` whose result is read by a quantization alone."""
        submodules = Submodules(gm)
        last_first = reversed(list(gm.graph.nodes))  # of two in a row both move
        moved = [_sink(gm, node, submodules) for node in last_first]
        submodules.drop_unused(path for path in moved if path is not None)
        return any(path is not None for path in moved)


def _sink(gm: fx.GraphModule, node: fx.Node, submodules: Submodules) -> str | None:
    """Return the path of the clamp that `node` called; None if it stays."""
    clamp = module_of(gm, node)
    if not isinstance(clamp, ChannelClamp):
        return None
    quantize = Chain.behind(gm, node).take(is_quantize).last
    if quantize is node:
        return None
    path, name = str(node.target), node.name
    affine = affine_of(quantize)
    grid = (affine.scale, affine.zero_point, affine.grid.quant_max)
    low, high = (kernels.quantize(each, *grid) for each in (clamp.low, clamp.high))
    take_out(node)
    if torch.any(low > 0) or torch.any(high < affine.grid.quant_max):
        on_integers = ChannelClamp(low.to(torch.float32), high.to(torch.float32), clamp.axis)
        target = free_name(gm, path)
        submodules.put(target, on_integers)
        with gm.graph.inserting_after(quantize):
            clamped = gm.graph.call_module(target)
        clamped.name = name
        quantize.replace_all_uses_with(clamped)
        clamped.args = (quantize,)
        annotate(clamped, integers=affine, value_of=value_of(quantize))
        annotate(quantize, value_of="")
    return path
