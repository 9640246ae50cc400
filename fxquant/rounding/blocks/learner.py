"""Learn the roundings of a block's weights together, and the scales of its fake-quantizers.

    minimize over V, s   E (f(x; W̃, s) - f(x; W))² + Σ λ (1 - |2 h(V) - 1|^β)

f is all that a block computes, activation functions and residual additions included, so that the
roundings of one layer make up for those of another (BRECQ: Li et al., 2021). V and h are AdaRound's
(`fxquant.rounding.adaround`); all V of the block are optimized at once. Scales follow the gradient
of LSQ (Esser et al., 2020), ∂x̂/∂s = q - x/s inside of the grid, q where it clips; Adam moves their
logarithms, so that its learning rate is relative.

In each step each element of an activation stays in float with a probability, and of the block's
input the float network's value is taken: so the roundings fit activations as a whole, not the
integers of the calibration data alone (QDrop: Wei et al., 2022).

λ is in units that do not depend on scales, as in `fxquant.rounding.adaround`: by what the block's
squared error grows when a weight goes to the next integer, s² Σ (∂f/∂W)², averaged over the weights
of an output channel. For a last layer without an activation that is the s² E[x̂²] of a layer by
itself. Random signs r give it: E[(∂(r·f)/∂W)²] = Σ (∂f/∂W)² (Hutchinson's estimator).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.layers import Layer, as_layer, output_rows, per_output
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.blocks.find import Block
from fxquant.rounding.blocks.forward import BlockForward, Round
from fxquant.rounding.blocks.learned_scale import Drops, Quantizer, round_activation
from fxquant.rounding.blocks.samples import Batch, Samples
from fxquant.rounding.soft_rounding import Schedule, SoftWeight

_PROBES = 8  # random signs for the units of λ
Weights = Mapping[QuantizedLayer, Tensor]
Scales = Mapping[FakeQuantize, Tensor]


@dataclass(frozen=True)
class LearnedBlock:
    """What learning a block gave, and Σ (f̂ - f)² / Σ f² on the samples set aside."""

    integers: dict[QuantizedLayer, Tensor]
    """Of each layer: int8, in its shape."""
    scales: dict[FakeQuantize, Tensor]
    error_nearest: float
    error_learned: float


class BlockLearner:
    """Adam on all V of a block, and on its quantizers' scales.

    Args:
        block: of `gm`; nothing of it is changed.
        gm: the quantized graph.
        reference: the float one, for the layers' weights.
        samples: what goes in and should come out.
        options: the steps to take, and how.
    """

    def __init__(
        self,
        block: Block,
        gm: fx.GraphModule,
        reference: fx.GraphModule,
        samples: Samples,
        options: Reconstruction,
    ) -> None:
        self._forward = BlockForward(block, gm, reference)
        self._samples, self._options = samples, options
        self._weights = {
            each.layer: _Weight(each.layer, as_layer(reference.get_submodule(each.name)))
            for each in block.subgraphs
        }
        self._log_scales = {
            each: torch.zeros_like(each.scale, requires_grad=True) for each in block.quantizers
        }
        self._drops = Drops(options.drop, samples.generator)
        self._factor = 1.0  # of the loss, to have units of 1 on average

    def learn(self) -> LearnedBlock:
        """Take all steps and return where they led."""
        nearest = {layer: each.nearest * each.scale for layer, each in self._weights.items()}
        before = self._error(nearest, {})
        with torch.enable_grad():
            self._set_units(nearest)
            self._take_steps()
        with torch.no_grad():
            integers = {layer: each.integers() for layer, each in self._weights.items()}
            hard = {layer: integers[layer] * each.scale for layer, each in self._weights.items()}
            scales = self._scales()
        return LearnedBlock(
            {layer: each.layer_integers(integers[layer]) for layer, each in self._weights.items()},
            scales,
            before,
            self._error(hard, scales),
        )

    def _take_steps(self) -> None:
        options = self._options
        variables = [each.v for each in self._weights.values()]
        log_scales = [*self._log_scales.values()]
        adam = torch.optim.Adam(variables, options.learning_rate)
        scale_adam = torch.optim.Adam([{"params": log_scales}], options.activation_learning_rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(scale_adam, options.steps)
        for beta in Schedule.of(options).betas():
            loss = self._loss(self._samples.draw())
            if beta:
                for each in self._weights.values():
                    loss = loss + options.regularization * each.regularizer(beta)
            adam.zero_grad()
            scale_adam.zero_grad()
            torch.autograd.backward(loss, inputs=variables + log_scales)
            adam.step()
            scale_adam.step()
            cosine.step()

    def _loss(self, batch: Batch) -> Tensor:
        """Return the mean squared error with soft roundings, and elements left in float."""
        dropped, x = self._drops.draw(batch.inputs), batch.inputs
        if dropped is not None:
            x = torch.lerp(x, batch.floats, dropped.to(x.dtype))
        scales = self._scales()

        def rounded(quantizer: Quantizer, value: Tensor, is_input: bool) -> Tensor:
            drawn = dropped if is_input else self._drops.draw(value)
            return round_activation(quantizer, value, scales, drawn)

        weights = {layer: each.soft() for layer, each in self._weights.items()}
        y = self._forward(batch.path, x, weights, rounded)
        return (y - batch.targets).to(torch.float32).square().mean() * self._factor

    def _set_units(self, nearest: dict[QuantizedLayer, Tensor]) -> None:
        """Find what λ counts in, and bring the loss to units that are 1 on average."""
        weights = [weight.requires_grad_() for weight in nearest.values()]
        growth = [torch.zeros_like(weight) for weight in weights]
        for _ in range(_PROBES):
            batch = self._samples.draw()
            y = self._forward(batch.path, batch.inputs, nearest, self._rounding({}))
            bits = torch.randint(2, y.shape, generator=self._samples.generator)
            signed = y.to(torch.float32) * (2 * bits - 1).to(y.device)
            for sums, gradient in zip(
                growth, torch.autograd.grad(signed.sum(), weights), strict=True
            ):
                sums.addcmul_(gradient, gradient, value=1 / (y.numel() * _PROBES))
        with torch.no_grad():
            for each, sums in zip(self._weights.values(), growth, strict=True):
                each.set_unit(sums)
            units = torch.cat(
                [each.unit.expand_as(each.v).flatten() for each in self._weights.values()]
            )
            mean = float(units.mean())
            self._factor = 1 / mean if mean > 0 else 1.0
            for each in self._weights.values():
                each.unit *= self._factor

    def _rounding(self, scales: Scales) -> Round:
        """Return the rounding of activations that leaves nothing in float."""
        return lambda quantizer, value, _: round_activation(quantizer, value, scales)

    def _scales(self) -> dict[FakeQuantize, Tensor]:
        return {each: each.scale * log_scale.exp() for each, log_scale in self._log_scales.items()}

    @torch.no_grad()
    def _error(self, weights: Weights, scales: Scales) -> float:
        """Return Σ (f̂ - f)² / Σ f² on the samples set aside."""
        noise = power = 0.0
        for batch in self._samples.judged():
            y = self._forward(batch.path, batch.inputs, weights, self._rounding(scales))
            noise += float((y.to(torch.float64) - batch.targets).square().sum())
            power += float(batch.targets.to(torch.float64).square().sum())
        return noise / max(power, 1e-300)


class _Weight(SoftWeight):
    """A layer's weight, in its own shape, with a unit for λ."""

    def __init__(self, layer: QuantizedLayer, reference: Layer) -> None:
        self._layer = as_layer(layer)
        weight = reference.weight.detach().to(torch.float32)
        affine = layer.weight_affine.map(lambda each: per_output(self._layer, each, weight))
        super().__init__(weight, affine)
        self.v.requires_grad_()
        self._zero_point = affine.zero_point
        self.nearest = affine.quantize(weight) - affine.zero_point
        self.unit = torch.ones_like(self.scale)

    def set_unit(self, growth: Tensor) -> None:
        """Take s² times the mean of `growth` over the weights of an output channel as the unit."""
        mean = output_rows(self._layer, growth).mean(dim=1)
        self.unit = self.scale.square() * per_output(self._layer, mean, growth)

    def regularizer(self, beta: int) -> Tensor:
        """Return Σ (1 - |2 h(V) - 1|^β) in units of the loss; β is even."""
        return (self.unit * self.undecided(beta)).sum()

    def layer_integers(self, integers: Tensor) -> Tensor:
        """Return what the layer keeps for integers minus the zero-point: int8."""
        return (integers + self._zero_point).to(torch.int8)
