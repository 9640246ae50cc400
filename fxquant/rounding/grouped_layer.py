"""One layer's weight as reconstruction sees it: grouped, and without the zero-point."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fxquant.modules.layers import Layer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.rounding.rows import grouped_weight, ungrouped_weight


class Rounding:
    """What integers a layer's weight may take.

    `weight` is the float one, (groups, out, in), float32; `scale`, and the bounds `low` and `high`
    of the integers minus the zero-point, are (groups, out, 1); `per_channel` says whether each
    output has a scale of its own.

    Args:
        layer: the quantized layer.
        reference: the float one.
    """

    def __init__(self, layer: QuantizedLayer, reference: Layer) -> None:
        self._layer = cast(Layer, layer)
        weight = reference.weight.detach().to(torch.float32)
        self.weight = grouped_weight(reference, weight).contiguous()
        self.per_channel = layer.weight_scale.dim() > 0
        self._affine = layer.weight_affine.map(self._grouped)
        self.scale = self._affine.scale
        self.low = self._affine.lowest.to(torch.float32)
        self.high = self._affine.highest.to(torch.float32)

    def _grouped(self, values: Tensor) -> Tensor:
        """Return a value per output channel, or one for all, as (groups, out, 1)."""
        groups, outputs = self.weight.shape[:2]
        return values.expand(groups * outputs).reshape(groups, outputs, 1)

    def nearest(self) -> Tensor:
        """Return the integers of rounding to nearest, minus the zero-point."""
        return self._affine.quantize(self.weight) - self._affine.zero_point

    def difference(self, integers: Tensor) -> Tensor:
        """Return W̃ - W for integers minus the zero-point."""
        return integers * self.scale - self.weight

    def layer_integers(self, integers: Tensor) -> Tensor:
        """Return what the layer keeps for integers minus the zero-point: int8, in its shape."""
        return ungrouped_weight(self._layer, integers + self._affine.zero_point).to(torch.int8)
