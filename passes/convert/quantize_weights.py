"""Turn each layer's weight into integers, rounded to nearest.

Before:  conv = Conv2d(x)
After:   conv = QuantizedConv2d(x)     # int8 integers, a scale per output channel

The range comes from the recipe's spec (`fxquant.numerics.activation_ranges`); Eqs. (1)-(8). A
module that is called several times, or under several names, is quantized once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx, nn

from fxquant.errors import CalibrationError
from fxquant.graph.operations import module_of
from fxquant.graph.selection import select_calls
from fxquant.graph.submodules import Submodules
from fxquant.modules.layers import as_layer
from fxquant.modules.quantized_layer import QuantizedLayer, quantize_layer
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED
from fxquant.recipe.recipe import Recipe


@dataclass(frozen=True, eq=False)
class QuantizeWeights(Pass):
    """Turn each layer's weight into integers, rounded to nearest."""

    starts_from = TRACED

    recipe: Recipe = field(default_factory=Recipe)

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each layer module that the recipe quantizes."""
        submodules = Submodules(gm)
        done: dict[nn.Module, QuantizedLayer] = {}
        for node, call in select_calls(gm, self.recipe).items():
            module = module_of(gm, node)
            if module is None or isinstance(module, QuantizedLayer) or call.weights is None:
                continue
            if module not in done:
                layer = as_layer(module)
                if not torch.isfinite(layer.weight).all():
                    raise CalibrationError(
                        f"{node.target}: NaN or infinity in its weight "
                        f"({int((~torch.isfinite(layer.weight)).sum())} of {layer.weight.numel()} "
                        "values): train it again, or leave it in float with a Rule(…, skip=True)"
                    )
                done[module] = quantize_layer(layer, call.weights)
            submodules.put(str(node.target), done[module])
        return bool(done)
