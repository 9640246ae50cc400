"""What rounding would cost a model at best guess: noise of the steps' width in its place.

Wherever the converted model rounds a tensor, uniform noise as wide as a step of min-max ranges is
added to the float one, drawn anew at each call; and so to its weights. How far the outputs move
says how much of what quantization costs lies in the model, and none of it in what fxquant did.
Ranges that clip whatever that costs, as asked for, clip here too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.layers import as_layer, output_rows, per_output
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.affine import Affine
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.pipeline import Pipeline
from fxquant.passes.prepare.absorb_batchnorm import AbsorbBatchNorm
from fxquant.passes.prepare.fold_batchnorm import FoldBatchNorm
from fxquant.recipe.spec import TensorSpec

_CLIPPING = ("ema", "bn", "percentile")
_COARSER = 2.0  # a tensor that shares its parameters has steps up to 6 dB coarser than its own


class Noise(nn.Module):
    """Add noise as wide as a step that spreads the tensor's range over its integers.

    Args:
        spec: of the quantizer in whose place it stands.
        affine: what its integers stand for, if that is fixed.
    """

    def __init__(self, spec: TensorSpec, affine: Affine | None) -> None:
        super().__init__()
        self.spec, self.affine = spec, affine

    def forward(self, x: Any) -> Any:
        """Return `x`, if it is a floating-point tensor, with noise."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        step = _step(x.reshape(1, -1), self.spec)
        if self.affine is not None:
            step = self.affine.scale.max().clamp(step, step * _COARSER)
            if self.spec.range in _CLIPPING and self.affine.scale.dim() == 0:
                low, high = (each * self.affine.scale for each in self._ends(self.affine))
                x = x.clamp(low, high)
        return x + (torch.rand_like(x) - 0.5) * step

    def _ends(self, affine: Affine) -> tuple[Tensor, Tensor]:
        return affine.grid.quant_min - affine.zero_point, affine.grid.quant_max - affine.zero_point


def with_noise(prepared: nn.Module, converted: nn.Module) -> nn.Module:
    """Return the float model with noise wherever `converted`, which was made of it, rounds."""
    passes = Pipeline(DropObservers(), FoldBatchNorm(), AbsorbBatchNorm())
    floats = dict(passes.on_copy_of(prepared).named_modules())
    noisy = copy.deepcopy(converted)
    for path, module in list(noisy.named_modules()):
        made: nn.Module | None = None
        if isinstance(module, FakeQuantize):
            made = Noise(module.spec, module.affine)
        elif isinstance(module, DynamicQuantize):
            made = Noise(module.spec, None)
        elif isinstance(module, QuantizedLayer):
            made = _noisy_layer(floats[path], module.weight_spec)
        if made is not None:
            parent, _, name = path.rpartition(".")
            setattr(noisy.get_submodule(parent), name, made)
    return noisy


def _noisy_layer(layer: nn.Module, spec: TensorSpec) -> nn.Module:
    made = as_layer(copy.deepcopy(layer))
    weight = made.weight.detach()
    rows = output_rows(made, weight) if spec.per_channel else weight.reshape(1, -1)
    step = per_output(made, _step(rows, spec), weight) if spec.per_channel else _step(rows, spec)
    noisy = weight + (torch.rand_like(weight) - 0.5) * step
    made.weight = nn.Parameter(noisy, requires_grad=False)
    return made


def _step(rows: Tensor, spec: TensorSpec) -> Tensor:
    """Return the width of a step over the range of each row: (rows, values) -> (rows,)."""
    high, low = rows.amax(1).clamp(min=0), rows.amin(1).clamp(max=0)
    reach = 2 * torch.maximum(high, -low) if spec.symmetric else high - low
    return reach.div(2**spec.bits - (2 if spec.symmetric else 1))
