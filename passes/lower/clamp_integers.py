"""Clamp integers where their grid, or an activation function, ends before their type does.

Before:  relu = ReLU(conv); quantize = quantize_per_tensor(relu, 0.02, 3, 0, 15, uint8)
After:   quantize = quantize_per_tensor(conv, 0.02, 3, 0, 15, uint8)
         clamp = torch.clamp(quantize, 3, 15)

PyTorch's operators clamp to the grid by themselves, those of ONNX only to the type. Rounding keeps
the order of values, and so a ReLU may come behind it, at the integers its bounds are rounded to:

    q(max(x, 0)) = max(q(x), q(0)) = max(q(x), z)

Moved are those that the type does not compute: a ReLU where z is not the type's least value, and
all with an upper bound. Of convolutions with such a ReLU onnxruntime has no integer form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxquant.graph.chains import Chain, take_out
from fxquant.graph.operations import relu_bounds, source_of
from fxquant.graph.submodules import Submodules
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import STANDARD


@dataclass(frozen=True, eq=False)
class ClampIntegers(Pass):
    """Clamp integers where their grid, or an activation function, ends before their type does."""

    starts_from = STANDARD

    def run(self, gm: fx.GraphModule) -> bool:
        """Work on the graph that `ToQdq` leaves."""
        operators = torch.ops.quantized_decomposed
        relus: list[fx.Node] = []
        is_clamped = False
        for node in list(gm.graph.nodes):
            if node.target is operators.quantize_per_tensor.default:
                low, high, taken = _ends_behind_relus(gm, node)
                relus += taken
            elif node.target is operators.quantize_per_channel.default:
                low, high = node.args[4:6]
            else:
                continue
            is_clamped |= _clamp(node, low, high)
        Submodules(gm).drop_unused(str(relu.target) for relu in relus if relu.op == "call_module")
        return is_clamped or bool(relus)


def _ends_behind_relus(gm: fx.GraphModule, quantize: fx.Node) -> tuple[int, int, list[fx.Node]]:
    """Return the least and the greatest integer; take the ReLUs out that they stand for."""
    known: Any = quantize.args
    relu, scale, zero_point, low, high, dtype = known
    relus: list[fx.Node] = []
    while (bounds := relu_bounds(gm, relu)) and Chain.behind(gm, relu).next is quantize:
        if bounds[1] == math.inf and zero_point == torch.iinfo(dtype).min:
            break
        low = max(low, zero_point)
        if bounds[1] < math.inf:
            high = min(high, zero_point + round(bounds[1] / scale))
        take_out(relu)
        relus.append(relu)
        relu = source_of(quantize)
    return low, high, relus


def _clamp(quantize: fx.Node, low: int, high: int) -> bool:
    dtype: Any = quantize.args[-1]
    ends = torch.iinfo(dtype)
    is_clamped = any(user.target is torch.clamp for user in quantize.users)
    if is_clamped or (low, high) == (ends.min, ends.max):
        return False
    with quantize.graph.inserting_after(quantize):
        clamp = quantize.graph.call_function(torch.clamp)
    quantize.replace_all_uses_with(clamp)
    clamp.args = (quantize, low, high)
    return True
