"""Give each output channel of a rounded weight its mean and its norm back.

Before:  conv = QuantizedConv2d(x)     # Ŵ = s (q - z)
After:   conv = QuantizedConv2d(x)     # ε (Ŵ - E[Ŵ]) + E[W],  ε = ‖W - E[W]‖ / ‖Ŵ - E[Ŵ]‖

The report's I.F, and Banner et al., 2019. The scale could absorb ε, but nothing absorbs the shift:
the weight leaves the integers' grid, so this is for simulation. `CorrectBias` is the correction
that integer kernels can use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxquant.errors import PassError
from fxquant.graph.submodules import Submodules
from fxquant.modules.layers import as_layer, output_rows
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED


@dataclass(frozen=True, eq=False)
class CorrectWeights(Pass):
    """Give each output channel of a rounded weight its mean and its norm back."""

    starts_from = CONVERTED

    reference: fx.GraphModule
    """The model before `QuantizeWeights`: its layers, by the same names, hold the float weights."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise `PassError` if a layer is not in the reference."""
        names = {name for name, _ in self.reference.named_modules()}
        for name, _ in _uncorrected(graph_module):
            if name not in names:
                raise PassError(f"the reference has no module {name!r}")

    def run(self, gm: fx.GraphModule) -> bool:
        """Correct each quantized layer once."""
        submodules = Submodules(gm)
        names = [name for name, _ in _uncorrected(gm)]
        for name in names:
            quantized = submodules.own(name)
            layer = as_layer(quantized)
            reference = as_layer(self.reference.get_submodule(name))
            weight = reference.weight.detach().to(torch.float32)
            rows, rounded = output_rows(layer, weight), output_rows(layer, layer.weight.float())
            gain, shift = gain_and_shift(rows, rounded)
            quantized.weight_gain, quantized.weight_shift = gain, shift
            quantized.weight_sqnr = sqnr(weight, layer.weight.float())
        return bool(names)


def gain_and_shift(rows: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """Return ε and E[W] - ε E[Ŵ] of each row: (rows, values), twice, -> (rows,), twice.

    A row that rounding made constant keeps ε = 1.
    """
    mean, rounded_mean = rows.mean(1), rounded.mean(1)
    norm = (rows - mean[:, None]).norm(dim=1)
    rounded_norm = (rounded - rounded_mean[:, None]).norm(dim=1)
    gain = torch.where(rounded_norm > 0, norm / rounded_norm, 1.0)
    return gain, mean - gain * rounded_mean


def _uncorrected(gm: fx.GraphModule) -> list[tuple[str, QuantizedLayer]]:
    return [
        (name, module)
        for name, module in gm.named_modules()
        if isinstance(module, QuantizedLayer) and module.weight_gain is None
    ]
