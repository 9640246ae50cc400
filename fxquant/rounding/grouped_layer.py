"""One layer's weight as reconstruction sees it: grouped, its integers without the zero-point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.modules.layers import Layer, as_layer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.affine import Affine
from fxquant.rounding.rows import grouped_weight, ungrouped_weight


@dataclass(frozen=True, eq=False)
class Rounding:
    """A weight, and what the integers that stand for it may be.

    Args:
        weight: W, the float one, float32, (groups, out, in).
        affine: (groups, out, 1).
        per_channel: whether each output has a scale of its own.
    """

    weight: Tensor
    affine: Affine
    per_channel: bool = True

    @classmethod
    def of(cls, layer: QuantizedLayer, reference: Layer) -> Rounding:
        """Return that of `layer`, whose float weight is that of `reference`."""
        weight = grouped_weight(reference, reference.weight.detach().to(torch.float32))
        groups, outputs, _ = weight.shape

        def grouped(values: Tensor) -> Tensor:  # one per output channel, or one for all
            return values.expand(groups * outputs).reshape(groups, outputs, 1)

        per_channel = layer.weight_scale.dim() > 0
        return cls(weight.contiguous(), layer.weight_affine.map(grouped), per_channel)

    def nearest(self) -> Tensor:
        """Return the integers of rounding to nearest, minus the zero-point."""
        return self.affine.quantize(self.weight) - self.affine.zero_point

    def layer_integers(self, layer: QuantizedLayer, integers: Tensor) -> Tensor:
        """Return what `layer` keeps for integers minus the zero-point: int8, in its shape."""
        whole = ungrouped_weight(as_layer(layer), integers + self.affine.zero_point)
        return whole.to(torch.int8)
