"""From rows of a layer's inputs and targets to its integer weight: `Reconstruction.method`.

* "adaround": which way each weight rounds (`fxquant.rounding.methods.adaround`);
* "adaquant": weight, scale and bias, freely (`fxquant.rounding.methods.adaquant`);
* "gram": integers, scale and bias by the inputs' Gram matrix, without gradients
  (`fxquant.rounding.methods.gram`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

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
from fxquant.rounding.methods.refit import Refit, refit
from fxquant.rounding.methods.shares import Share
from fxquant.rounding.methods.soft_rounding import Schedule
from fxquant.streaming.distributed import copy_from_first_rank, gather_objects

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
    fit = refit(rounding, rows, judged, activation, _dtype(rows, options))
    # By the Gram matrix inputs have one order for all groups, and these take little time.
    share = Share.of_this_rank(rounding, by_groups=options.method != "gram")
    own = _METHODS[options.method](fit, rows, activation, options, share)
    learned = Learned(*(share.joined(each, rounding) for each in own))
    learned = replace(learned, shift=learned.shift + fit.shift)
    copy_from_first_rank(learned.integers, learned.scale, learned.shift)
    return learned


_Found: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Integers, scales and shifts of a share of the outputs, as in `Learned`."""


def _adaround(
    fit: Refit, rows: Rows, activation: Activation, options: Reconstruction, share: Share
) -> _Found:
    rounding = share.of_rounding(fit.rounding)
    loss = _loss(fit.rows(rows, activation), activation, options, share)
    integers = learn_rounding(rounding, loss, Schedule.of(options))
    return integers, rounding.affine.scale, torch.zeros_like(integers[..., 0])


def _adaquant(
    fit: Refit, rows: Rows, activation: Activation, options: Reconstruction, share: Share
) -> _Found:
    loss = _loss(_with_ones(fit.rows(rows, activation)), activation, options, share)
    rate = _FREE_RATE * options.learning_rate
    return learn_freely(share.of_rounding(fit.rounding), loss, options.steps, rate)


def _loss(rows: Rows, activation: Activation, options: Reconstruction, share: Share) -> Loss:
    dtype = _dtype(rows, options)
    if len(set(gather_objects(dtype))) > 1:  # processors differ
        dtype = torch.float32
    return cheaper_loss(rows, activation, options.rows, options.steps, dtype, share)


def _dtype(rows: Rows, options: Reconstruction) -> torch.dtype:
    """Return the dtype of products of inputs and differences of weights."""
    is_quick = options.bfloat16
    return product_dtype(rows.inputs, rows.outputs.shape[2]) if is_quick else torch.float32


def _with_ones(rows: Rows) -> Rows:
    """Return rows with one input more, the last, that is always 1."""
    return Rows(F.pad(rows.inputs, (0, 1), value=1.0), rows.outputs, rows.targets)


def _on_gram(
    fit: Refit, rows: Rows, activation: Activation, options: Reconstruction, share: Share
) -> _Found:
    error = None
    if fit.is_confirmed:  # else what is to be learned is what W' computes: it has no error
        rows = fit.rows(rows, activation)
        error = torch.empty_like(rows.outputs)
        activation.write_gradient(rows.outputs, rows.targets, error)
    moments = InputMoments.of(rows, error)
    rounding, gram = share.of_rounding(fit.rounding), moments.gram[share.groups]
    integers, scale = round_on_gram(GramProblem(rounding, gram, share.of(moments.cross)), _SWEEPS)
    difference = integers * scale - rounding.weight
    mean = moments.inputs[share.groups, :, None]
    return integers, scale, -share.of(moments.errors) - torch.bmm(difference, mean).squeeze(2)


_METHODS = {"adaround": _adaround, "adaquant": _adaquant, "gram": _on_gram}
