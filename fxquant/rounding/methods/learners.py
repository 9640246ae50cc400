"""From rows of a layer's inputs and targets to its integer weight: `Reconstruction.method`.

* "adaround": which way each weight rounds (`fxquant.rounding.methods.adaround`);
* "adaquant": weight, scale and bias, freely (`fxquant.rounding.methods.adaquant`);
* "gram": integers, scale and bias by the inputs' Gram matrix, without gradients
  (`fxquant.rounding.methods.gram`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.modules.layers import Layer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.grouped_layer import Rounding
from fxquant.rounding.methods.activations import Activation
from fxquant.rounding.methods.adaquant import learn_freely
from fxquant.rounding.methods.adaround import learn_rounding
from fxquant.rounding.methods.gram import GramProblem, round_on_gram
from fxquant.rounding.methods.losses import Loss, Rows, cheaper_loss
from fxquant.rounding.methods.moments import InputMoments
from fxquant.rounding.methods.products import product_dtype
from fxquant.rounding.methods.refit import refit
from fxquant.rounding.methods.soft_rounding import Schedule
from fxquant.streaming.distributed import (
    copy_from_first_rank,
    gather_objects,
    num_ranks,
    rank,
    sum_over_ranks,
)

_FREE_RATE = 0.1  # AdaQuant's learning rate as a share of AdaRound's, which is one of V
_SWEEPS = 8


@dataclass(frozen=True, eq=False)
class Learned:
    """What a layer computes with from now on; grouped as in `fxquant.rounding.methods.losses`."""

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

    def write_to(self, layer: QuantizedLayer, rounding: Rounding, reference: Layer) -> None:
        """Give `layer` the integers, and the scales and the bias where they moved.

        Args:
            layer: the quantized one.
            rounding: as which it was learned.
            reference: the float one, to whose bias the shift is added.
        """
        layer.weight_integers.copy_(rounding.layer_integers(layer, self.integers))
        scale = self.scale.flatten() if rounding.per_channel else self.scale[0, 0, 0]
        layer.weight_scale.copy_(scale)
        bias = self.shift.flatten()
        if reference.bias is not None:
            bias = bias + reference.bias.detach().to(bias)
        if not torch.equal(bias, layer.bias_values()):
            layer.set_bias(bias)


def learn(
    rounding: Rounding, rows: Rows, judged: Rows, activation: Activation, options: Reconstruction
) -> Learned:
    """Return what `options.method` makes of a layer, the same on all ranks.

    Args:
        rounding: the layer's own weight.
        rows: to learn from.
        judged: set aside; they say how far the layer is to follow its inputs (`refit`).
        activation: f.
        options: how.
    """
    fit = refit(rounding, rows, judged, activation)
    rows = fit.rows(rows, rounding, activation)
    learned = _METHODS[options.method](fit.rounding, rows, activation, options)
    learned = replace(learned, shift=learned.shift + fit.shift)
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
    moments = InputMoments.of(rows, error)
    integers, scale = _solved(GramProblem(rounding, moments.gram, moments.cross))
    difference = integers * scale - rounding.weight
    shift = -moments.errors - torch.bmm(difference, moments.inputs[:, :, None]).squeeze(2)
    return Learned(integers, scale, shift)


def _solved(problem: GramProblem) -> tuple[Tensor, Tensor]:
    """Return integers and scales; each rank finds those of its share of the outputs."""
    rounding, number = problem.rounding, num_ranks()
    outputs = rounding.weight.shape[1]
    if number == 1 or not rounding.per_channel or outputs < number:
        return round_on_gram(problem, _SWEEPS)
    own = slice(rank() * outputs // number, (rank() + 1) * outputs // number)
    integers = torch.zeros_like(rounding.weight)
    scale = torch.zeros_like(rounding.affine.scale)
    integers[:, own], scale[:, own] = round_on_gram(problem.of_outputs(own), _SWEEPS)
    sum_over_ranks(integers, scale)
    return integers, scale


_METHODS = {"adaround": _adaround, "adaquant": _adaquant, "gram": _on_gram}
