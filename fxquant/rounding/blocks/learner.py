"""Learn the weights of a block together, and the scales of its fake-quantizers.

    minimize over V, s   E (f(x; W̃, s) - f(x; W))² + Σ λ (1 - |2 h(V) - 1|^β)

f is all that a block computes, activation functions and residual additions included, so that the
roundings of one layer make up for those of another (BRECQ: Li et al., 2021). V and h are AdaRound's
(`fxquant.rounding.methods.adaround`); all V of the block are optimized at once. With
`method="adaquant"` integers, scales and biases are free, and there is no λ
(`fxquant.rounding.blocks.weights`). Scales
of activations follow the gradient of LSQ (Esser et al., 2020), ∂x̂/∂s = q - x/s inside of the grid,
q where it clips; Adam moves their logarithms, so that its learning rate is relative.

In each step each element of an activation stays in float with a probability, and of the block's
input the float network's value is taken: so the roundings fit activations as a whole, not the
integers of the calibration data alone (QDrop: Wei et al., 2022).

λ is in units that do not depend on scales, as in `fxquant.rounding.methods.adaround`: by what the
block's squared error grows when a weight goes to the next integer, s² Σ (∂f/∂W)², averaged over the
weights of an output channel. For a last layer without an activation that is the s² E[x̂²] of a layer
by itself. Random signs r give it: E[(∂(r·f)/∂W)²] = Σ (∂f/∂W)² (Hutchinson's estimator).

Where the machine multiplies bfloat16 in hardware, and what that loses is a hundredth of what
rounding to nearest does, steps are taken in it; what was learned is judged in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.layers import as_layer
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import decibels
from fxquant.recipe.reconstruction import Reconstruction
from fxquant.rounding.blocks.find import Block
from fxquant.rounding.blocks.forward import BlockForward, Round
from fxquant.rounding.blocks.learned_scale import Drops, Quantizer, round_activation
from fxquant.rounding.blocks.region import Path
from fxquant.rounding.blocks.samples import Batch, Samples
from fxquant.rounding.blocks.weights import FreeWeight, LearnedLayer, LearnedWeight, RoundedWeight
from fxquant.rounding.methods.products import multiplies_bfloat16
from fxquant.rounding.methods.soft_rounding import Schedule

_PROBES = 8  # random signs for the units of λ
_MARGIN = 20.0  # dB, of steps in bfloat16 over rounding to nearest, which learning is to improve
Tensors = Mapping[QuantizedLayer, Tensor]
Scales = Mapping[FakeQuantize, Tensor]


@dataclass(frozen=True)
class LearnedBlock:
    """What learning a block gave, and Σ (f̂ - f)² / Σ f² on the samples set aside."""

    layers: dict[QuantizedLayer, LearnedLayer]
    scales: dict[FakeQuantize, Tensor]
    error_before: float
    error_learned: float


class BlockLearner:
    """Adam on the weights of a block, and on its quantizers' scales.

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
        references = {
            each.layer: as_layer(reference.get_submodule(each.name)) for each in block.subgraphs
        }
        self._weights: dict[QuantizedLayer, LearnedWeight] = {}
        if options.method == "adaquant":
            sizes = self._forward.output_sizes(samples.draw())
            for layer, each in references.items():
                self._weights[layer] = FreeWeight(layer, each, sizes[layer])
        else:
            for layer, each in references.items():
                self._weights[layer] = RoundedWeight(layer, each)
        self._log_scales = {
            each: torch.zeros_like(each.scale, requires_grad=True) for each in block.quantizers
        }
        self._drops = Drops(options.drop, samples.generator)
        self._factor = 1.0  # of the loss, to have units of 1 on average
        self._least_sqnr = math.inf
        """How exact steps must be at least, in dB."""
        self._dtype: dict[Path, torch.dtype] = {}

    def learn(self) -> LearnedBlock:
        """Take all steps and return where they led."""
        start = {layer: each.before for layer, each in self._weights.items()}
        before = self._error(start, self._biases(), {})
        self._least_sqnr = decibels(1.0, max(before, 1e-30)) + _MARGIN
        with torch.enable_grad():
            self._set_units(start)
            self._take_steps()
        with torch.no_grad():
            layers = {layer: each.result() for layer, each in self._weights.items()}
            scales = self._scales()
        hard = {layer: each.weight for layer, each in layers.items()}
        biases = {layer: each.bias for layer, each in layers.items() if each.bias is not None}
        return LearnedBlock(layers, scales, before, self._error(hard, biases, scales))

    def _take_steps(self) -> None:
        options = self._options
        learned = [pair for each in self._weights.values() for pair in each.variables()]
        log_scales = [*self._log_scales.values()]
        rounded = self._rounded()
        adam = torch.optim.Adam(
            [{"params": [each], "lr": options.learning_rate * share} for each, share in learned]
        )
        scale_adam = torch.optim.Adam([{"params": log_scales}], options.activation_learning_rate)
        falling = [scale_adam] if rounded else [scale_adam, adam]
        rates = [
            torch.optim.lr_scheduler.CosineAnnealingLR(each, options.steps) for each in falling
        ]
        schedule = Schedule.of(options)
        for beta in schedule.betas():
            loss = self._loss(self._samples.draw())
            for each in rounded if beta else ():
                loss = loss + schedule.regularization * each.regularizer(beta)
            adam.zero_grad()
            scale_adam.zero_grad()
            torch.autograd.backward(loss, inputs=[each for each, _ in learned] + log_scales)
            adam.step()
            scale_adam.step()
            for rate in rates:
                rate.step()

    def _rounded(self) -> list[RoundedWeight]:
        """Return the weights that λ draws to the grid."""
        return [each for each in self._weights.values() if isinstance(each, RoundedWeight)]

    def _loss(self, batch: Batch) -> Tensor:
        """Return the mean squared error with soft roundings, and elements left in float."""
        dtype = self._dtype_of(batch)
        x, floats = (each.to(dtype) for each in (batch.inputs, batch.floats))
        dropped = self._drops.draw(x)
        if dropped is not None:
            x = torch.lerp(x, floats, dropped.to(x.dtype))
        scales = self._scales()

        def rounded(quantizer: Quantizer, value: Tensor, is_input: bool) -> Tensor:
            drawn = dropped if is_input else self._drops.draw(value)
            return round_activation(quantizer, value, scales, drawn)

        weights = {layer: each.weight() for layer, each in self._weights.items()}
        y = self._forward(batch.path, x, weights, rounded, self._biases(), batch.beside(dtype))
        y = batch.judged_part(y)
        return (y.to(torch.float32) - batch.targets).square().mean() * self._factor

    def _dtype_of(self, batch: Batch) -> torch.dtype:
        """Return the dtype in which steps are fastest, of those in which the block is the same."""
        own = batch.inputs.dtype
        if batch.path not in self._dtype:
            narrow = torch.bfloat16
            is_narrow = (
                self._options.bfloat16
                and own == torch.float32
                and multiplies_bfloat16(batch.inputs.device.type)
                and self._forward.sqnr_in(narrow, batch) > self._least_sqnr
            )
            self._dtype[batch.path] = narrow if is_narrow else own
        return self._dtype[batch.path]

    def _set_units(self, start: Tensors) -> None:
        """Find what λ counts in, and bring the loss to units that are 1 on average."""
        rounded = self._rounded()
        if not rounded:
            self._factor = 1 / max(self._samples.power, 1e-30)
            return
        weights = [weight.requires_grad_() for weight in start.values()]
        growth = [torch.zeros_like(weight) for weight in weights]
        for _ in range(_PROBES):
            batch = self._samples.draw()
            rounding = self._rounding({})
            y = self._forward(batch.path, batch.inputs, start, rounding, context=batch.context)
            y = batch.judged_part(y)
            bits = torch.randint(2, y.shape, generator=self._samples.generator)
            signed = y.to(torch.float32) * (2 * bits - 1).to(y.device)
            for sums, gradient in zip(
                growth, torch.autograd.grad(signed.sum(), weights), strict=True
            ):
                sums.addcmul_(gradient, gradient, value=1 / (y.numel() * _PROBES))
        with torch.no_grad():
            for each, sums in zip(rounded, growth, strict=True):
                each.set_unit(sums)
            units = torch.cat([each.unit.expand_as(each.v).flatten() for each in rounded])
            mean = float(units.mean())
            self._factor = 1 / mean if mean > 0 else 1.0
            for each in rounded:
                each.unit *= self._factor

    def _rounding(self, scales: Scales) -> Round:
        """Return the rounding of activations that leaves nothing in float."""
        return lambda quantizer, value, _: round_activation(quantizer, value, scales)

    def _biases(self) -> dict[QuantizedLayer, Tensor]:
        """Return the biases that are learned, as they are now."""
        found = {layer: each.bias() for layer, each in self._weights.items()}
        return {layer: bias for layer, bias in found.items() if bias is not None}

    def _scales(self) -> dict[FakeQuantize, Tensor]:
        return {each: each.scale * log_scale.exp() for each, log_scale in self._log_scales.items()}

    @torch.no_grad()
    def _error(self, weights: Tensors, biases: Tensors, scales: Scales) -> float:
        """Return Σ (f̂ - f)² / Σ f² on the samples set aside."""
        noise = power = 0.0
        for batch in self._samples.judged():
            rounded = self._rounding(scales)
            y = self._forward(batch.path, batch.inputs, weights, rounded, biases, batch.context)
            noise += float((y.to(torch.float64) - batch.targets).square().sum())
            power += float(batch.targets.to(torch.float64).square().sum())
        return noise / max(power, 1e-300)
