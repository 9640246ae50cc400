"""Clamp the floats that are quantized to a grid which ends before its type does.

Before:  quantize = quantize_per_tensor(conv, 0.02, 0, -8, 7, int8)
After:   clamp = torch.clamp(conv, -0.16, 0.14)
         quantize = quantize_per_tensor(clamp, 0.02, 0, -8, 7, int8)

PyTorch's operators clamp to the grid by themselves, those of ONNX only to the type. The values
stay the same: n · s / s rounds to n. This is for runtimes whose integers DequantizeLinear alone may
read, as TensorRT's ("Explicit Quantization" of its documentation); `ClampIntegers` is for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import STANDARD


@dataclass(frozen=True, eq=False)
class ClampFloats(Pass):
    """Clamp the floats that are quantized to a grid which ends before its type does."""

    starts_from = STANDARD

    def run(self, gm: fx.GraphModule) -> bool:
        """Work on the graph that `ToQdq` leaves, activations with one scale each."""
        quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
        calls = gm.graph.find_nodes(op="call_function", target=quantize)
        return any([_clamp(call) for call in calls])


def _clamp(quantize: fx.Node) -> bool:
    known: Any = quantize.args
    x, scale, zero_point, low, high, dtype = known
    ends = torch.iinfo(dtype)
    bounds = ((low - zero_point) * scale, (high - zero_point) * scale)
    is_clamped = x.target is torch.clamp and x.args[1:] == bounds
    if is_clamped or (low, high) == (ends.min, ends.max):
        return False
    with quantize.graph.inserting_before(quantize):
        clamp = quantize.graph.call_function(torch.clamp, (x, *bounds))
    quantize.replace_input_with(x, clamp)
    return True
