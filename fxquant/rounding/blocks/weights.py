"""Weights of a block's layers as learning sees them: what is learned, and with what gradients.

* `RoundedWeight`: which way each value rounds (AdaRound: `fxquant.rounding.methods.soft_rounding`).
* `FreeWeight`: integers, scales and biases, freely, by gradients that go straight through the
  rounding (AdaQuant: Hubara et al., 2020). With the values V in steps of the grid,

      W̃ = s eᵍ · clamp(round(V), n, p),   b' = b + r · m

  V, g and m are learned; r is the size of the layer's output channels on calibration data, so that
  one learning rate fits all. Where a few integers must make up for what many activations lose,
  each must be free to go further than to its neighbour. V starts at the float weight where the
  layer's integer is the nearest to it; where an earlier pass chose another, within that one's
  reach, on the side of the float weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.modules.layers import Layer, as_layer, output_rows, per_output
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.affine import Affine
from fxquant.rounding.methods.soft_rounding import SoftWeight


@dataclass(frozen=True, eq=False)
class LearnedLayer:
    """What a layer of a block computes with from now on."""

    integers: Tensor
    """int8, in the layer's shape, the zero-point included."""
    scale: Tensor
    """() or (out,)."""
    bias: Tensor | None
    """(out,), float32; None: as it is."""
    weight: Tensor
    """What the integers stand for, float32."""

    def write_to(self, layer: QuantizedLayer) -> None:
        """Give `layer` the integers, and the scales and the bias where they moved."""
        layer.weight_integers.copy_(self.integers)
        layer.weight_scale.copy_(self.scale)
        if self.bias is not None:
            layer.set_bias(self.bias)


class LearnedWeight(ABC):
    """One layer's weight, on the way."""

    before: Tensor
    """What learning starts from, in the layer's shape, float32: it is to be no worse."""

    @abstractmethod
    def variables(self) -> list[tuple[Tensor, float]]:
        """Return what is learned, each with its learning rate as a share of the recipe's."""

    @abstractmethod
    def weight(self) -> Tensor:
        """Return the weight to compute with in a step; autograd sees through it."""

    @abstractmethod
    def bias(self) -> Tensor | None:
        """Return the bias to compute with in a step; None: the float layer's."""

    @abstractmethod
    def result(self) -> LearnedLayer:
        """Return where learning led."""


class RoundedWeight(SoftWeight, LearnedWeight):
    """A weight between the grid points next to it, with a unit for AdaRound's λ."""

    def __init__(self, layer: QuantizedLayer, reference: Layer) -> None:
        self._layer = as_layer(layer)
        weight, affine = _on_grid(layer, reference)
        super().__init__(weight, affine)
        self.v.requires_grad_()
        self._scale, self._zero_point = layer.weight_scale, affine.zero_point
        self.before = (affine.quantize(weight) - affine.zero_point) * affine.scale
        self.unit = torch.ones_like(self.scale)

    def variables(self) -> list[tuple[Tensor, float]]:
        """Return V."""
        return [(self.v, 1.0)]

    def weight(self) -> Tensor:
        """Return the weight with soft roundings."""
        return self.soft()

    def bias(self) -> None:
        """Return nothing: biases stay as they are."""

    def result(self) -> LearnedLayer:
        """Return the weight with hard roundings."""
        integers = self.integers()
        stored = (integers + self._zero_point).to(torch.int8)
        return LearnedLayer(stored, self._scale, None, integers * self.scale)

    def set_unit(self, growth: Tensor) -> None:
        """Take s² times the mean of `growth` over the weights of an output channel as the unit."""
        mean = output_rows(self._layer, growth).mean(dim=1)
        self.unit = self.scale.square() * per_output(self._layer, mean, growth)

    def regularizer(self, beta: int) -> Tensor:
        """Return Σ (1 - |2 h(V) - 1|^β) in units of the loss; β is even."""
        return (self.unit * self.undecided(beta)).sum()


_REACH = 0.45  # steps from an integer, less than what rounds to another
_WEIGHT_RATE, _SCALE_RATE, _BIAS_RATE = 0.1, 0.01, 0.005  # shares of the recipe's learning rate


class FreeWeight(LearnedWeight):
    """A weight whose integers, scales and bias are all free.

    Args:
        layer: the quantized one.
        reference: the float one.
        sizes: r, the roots of the mean squares of the layer's output channels, (out,).
    """

    def __init__(self, layer: QuantizedLayer, reference: Layer, sizes: Tensor) -> None:
        self._layer, self._scale, self._sizes = as_layer(layer), layer.weight_scale, sizes
        weight, self._affine = _on_grid(layer, reference)
        self.before = layer.weight.detach().to(torch.float32)
        self._v = _within_reach(weight / self._affine.scale, self._integers_of(layer))
        self._v.requires_grad_()
        self._growth = torch.zeros_like(layer.weight_scale, requires_grad=True)
        self._start = layer.bias_values()
        self._shift = torch.zeros_like(self._start, requires_grad=True)

    def _integers_of(self, layer: QuantizedLayer) -> Tensor:
        return layer.weight_integers.to(torch.float32) - self._affine.zero_point

    def variables(self) -> list[tuple[Tensor, float]]:
        """Return V, g and m."""
        return [
            (self._v, _WEIGHT_RATE),
            (self._growth, _SCALE_RATE),
            (self._shift, _BIAS_RATE),
        ]

    def weight(self) -> Tensor:
        """Return W̃; its gradient by V is s eᵍ within the grid."""
        rounded = self._v.detach().round()
        kept = torch.clamp(rounded, self._affine.lowest, self._affine.highest)
        within = self._v * (rounded == kept)  # clamp's own gradient at its ends has varied
        scale = per_output(self._layer, self._scale * self._growth.exp(), self._v)
        return (within + (kept - within).detach()) * scale

    def bias(self) -> Tensor:
        """Return b'."""
        return self._start + self._sizes * self._shift

    def result(self) -> LearnedLayer:
        """Return integers, scales and bias as they are now."""
        low, high = self._affine.lowest, self._affine.highest
        integers = self._v.detach().round().clamp(low, high)
        scale = (self._scale * self._growth.exp()).detach()
        stored = (integers + self._affine.zero_point).to(torch.int8)
        weight = integers * per_output(self._layer, scale, integers)
        return LearnedLayer(stored, scale, self.bias().detach(), weight)


def _on_grid(layer: QuantizedLayer, reference: Layer) -> tuple[Tensor, Affine]:
    """Return the float weight, float32, and the layer's grid, which broadcasts against it."""
    weight = reference.weight.detach().to(torch.float32)
    affine = layer.weight_affine.map(lambda each: per_output(as_layer(layer), each, weight))
    return weight, affine


def _within_reach(values: Tensor, integers: Tensor) -> Tensor:
    """Return `values` where `integers` are what they round to; else as close as still does."""
    is_nearest = values.round() == integers
    return torch.where(is_nearest, values, integers + (values - integers).clamp(-_REACH, _REACH))
