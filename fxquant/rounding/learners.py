"""From rows of a layer's inputs and targets to its integer weight: `Reconstruction.method`.

* "adaround": which way each weight rounds (`fxquant.rounding.adaround`);
* "adaquant": weight, scale and bias, freely (`fxquant.rounding.adaquant`);
* "gram": integers, scale and bias by the inputs' Gram matrix, without gradients
  (`fxquant.rounding.gram`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.activations import Activation
from fxquant.rounding.adaquant import learn_freely
from fxquant.rounding.adaround import learn_rounding
from fxquant.rounding.gram import GramProblem, round_on_gram
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.losses import Loss, Rows, cheaper_loss, product_dtype
from fxquant.rounding.soft_rounding import Schedule
from fxquant.streaming.distributed import (
    copy_from_first_rank,
    gather_objects,
    num_ranks,
    sum_over_ranks,
)

_FREE_RATE = 0.1  # AdaQuant's learning rate as a share of AdaRound's, which is one of V
_SWEEPS = 8


@dataclass(frozen=True, eq=False)
class Learned:
    """What a layer computes with from now on; grouped as in `fxquant.rounding.losses`."""

    integers: Tensor
    """Minus the zero-point: (groups, out, in)."""
    scale: Tensor
    """(groups, out, 1)."""
    shift: Tensor
    """What to add to the bias: (groups, out)."""

    @classmethod
    def nearest(cls, rounding: Rounding) -> Learned:
        """Return the weight rounded to nearest."""
        return cls.rounded(rounding, rounding.nearest())

    @classmethod
    def rounded(cls, rounding: Rounding, integers: Tensor) -> Learned:
        """Return integers with the scales and the bias that the layer has."""
        return cls(integers, rounding.affine.scale, torch.zeros_like(integers[..., 0]))

    def error(self, rounding: Rounding, rows: Rows, activation: Activation) -> Tensor:
        """Return Σ (f(y) - t)² and Σ t² over `rows`: (2,), float64."""
        difference = self.integers * self.scale - rounding.weight
        return torch.stack(rows.error(difference, activation, self.shift))

    def write_to(self, layer: QuantizedLayer, rounding: Rounding) -> None:
        """Give `layer` the integers, and the scales and the bias where they moved."""
        layer.weight_integers.copy_(rounding.layer_integers(layer, self.integers))
        scale = self.scale.flatten() if rounding.per_channel else self.scale[0, 0, 0]
        layer.weight_scale.copy_(scale)
        if torch.any(self.shift != 0):
            layer.set_bias(layer.bias_values() + self.shift.flatten())


def learn(
    rounding: Rounding, rows: Rows, activation: Activation, options: Reconstruction
) -> Learned:
    """Return what `options.method` makes of a layer, the same on all ranks."""
    learned = _METHODS[options.method](rounding, rows, activation, options)
    copy_from_first_rank(learned.integers, learned.scale, learned.shift)
    return learned


def _adaround(
    rounding: Rounding, rows: Rows, activation: Activation, options: Reconstruction
) -> Learned:
    loss = _loss(rows, activation, options)
    with loss.steps(options.steps):
        integers = learn_rounding(rounding, loss, Schedule.of(options))
    return Learned.rounded(rounding, integers)


def _adaquant(
    rounding: Rounding, rows: Rows, activation: Activation, options: Reconstruction
) -> Learned:
    loss = _loss(_with_ones(rows), activation, options)
    rate = _FREE_RATE * options.learning_rate
    with loss.steps(options.steps):
        return Learned(*learn_freely(rounding, loss, options.steps, rate))


def _loss(rows: Rows, activation: Activation, options: Reconstruction) -> Loss:
    dtype = product_dtype(rows.inputs, rows.outputs.shape[2]) if options.bfloat16 else torch.float32
    if len(set(gather_objects(dtype))) > 1:  # processors differ
        dtype = torch.float32
    return cheaper_loss(rows, activation, options.rows, options.steps, dtype)


def _with_ones(rows: Rows) -> Rows:
    """Return rows with one input more, the last, that is always 1."""
    return Rows(F.pad(rows.inputs, (0, 1), value=1.0), rows.outputs, rows.targets)


def _on_gram(
    rounding: Rounding, rows: Rows, activation: Activation, options: Reconstruction
) -> Learned:
    error = torch.empty_like(rows.outputs)
    activation.write_gradient(rows.outputs, rows.targets, error)
    inputs, errors = _mean(rows.inputs), _mean(error)
    centred = rows.inputs - inputs[:, None]
    gram, cross = _mean_product(centred, centred), _mean_product(error, centred)
    integers, scale = round_on_gram(GramProblem(rounding, gram, cross), _SWEEPS)
    difference = integers * scale - rounding.weight
    shift = -errors - torch.bmm(difference, inputs[:, :, None]).squeeze(2)
    return Learned(integers, scale, shift)


def _mean(rows: Tensor) -> Tensor:
    """Return the mean of all ranks' rows: (groups, rows, n) -> (groups, n)."""
    return _over_ranks(rows.sum(dim=1), rows)


def _mean_product(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean of one · otherᵀ over all ranks' rows: (groups, n, m)."""
    return _over_ranks(torch.bmm(one.mT, other), one)


def _over_ranks(sums: Tensor, rows: Tensor) -> Tensor:
    count = sums.new_full((), float(rows.shape[1]))
    if num_ranks() > 1:
        sum_over_ranks(sums, count)
    return sums / count


_METHODS = {"adaround": _adaround, "adaquant": _adaquant, "gram": _on_gram}
