"""What rounding would cost a model at best guess: noise of the steps' width in its place.

Wherever the converted model rounds a tensor, uniform noise as wide as a step of min-max ranges over
all batches is added to the float one, drawn anew at each call; and to its weights, once a model.
How far the outputs move says how much of what quantization costs lies in the model, and none of it
in what fxquant did. Ranges that clip whatever that costs, as asked for, clip here too; those that
weigh clipping against rounding do as long as they keep half of what is there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.layers import as_layer, output_rows, per_output
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.affine import Affine, along_axis
from fxquant.numerics.containers import cloned
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.pipeline import Pipeline
from fxquant.passes.prepare.absorb_batchnorm import AbsorbBatchNorm
from fxquant.passes.prepare.fold_batchnorm import FoldBatchNorm
from fxquant.recipe.spec import TensorSpec

_CLIPPING = ("ema", "bn", "percentile")
_WEIGHING = ("aciq", "mse")
_COARSER = 2.0  # a tensor that shares its parameters has steps up to 6 dB coarser than its own


class Noise(nn.Module):
    """Add noise as wide as a step that spreads the tensor's range over its integers.

    Args:
        spec: of the quantizer in whose place it stands.
        affine: what its integers stand for, if that is fixed.
        axis: of its channels, from the end, where each has its own scale.
    """

    def __init__(self, spec: TensorSpec, affine: Affine | None, axis: int | None = None) -> None:
        super().__init__()
        self.spec, self.affine, self.axis = spec, affine, axis
        self.low, self.high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
        """Of all that it saw."""

    def forward(self, x: Any) -> Any:
        """Return `x`, if it is a floating-point tensor, with noise."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        low, high = torch.aminmax(x)
        if self.affine is not None:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            step = _step(self.low, self.high, self.spec)
            step = self.affine.scale.max().clamp(step, step * _COARSER)
            x = self._clipped(x, self.affine)
        else:
            step = _step(low, high, self.spec)
        return x + (torch.rand_like(x) - 0.5) * step

    def _clipped(self, x: Tensor, affine: Affine) -> Tensor:
        if self.spec.range not in (*_CLIPPING, *_WEIGHING):
            return x
        grid, zero = affine.grid, affine.zero_point
        low, high = ((end - zero) * affine.scale for end in (grid.quant_min, grid.quant_max))
        if self.axis is not None:
            low, high = (along_axis(end, x.dim() + self.axis, x.dim()) for end in (low, high))
        if self.spec.range in _WEIGHING:
            low, high = torch.minimum(low, self.low / 2), torch.maximum(high, self.high / 2)
        return x.clamp(low, high)


def with_noise(
    prepared: nn.Module, converted: nn.Module, batches: Sequence[Mapping[str, Any]]
) -> nn.Module:
    """Return the float model with noise wherever `converted`, which was made of it, rounds.

    Args:
        prepared: what was calibrated.
        converted: what was made of it.
        batches: what it was calibrated on.
    """
    passes = Pipeline(DropObservers(), FoldBatchNorm(), AbsorbBatchNorm())
    floats = dict(passes.on_copy_of(prepared).named_modules())
    noisy = copy.deepcopy(converted)
    for path, module in list(noisy.named_modules()):
        made: nn.Module | None = None
        if isinstance(module, FakeQuantize):
            made = Noise(module.spec, module.affine, module.axis)
        elif isinstance(module, DynamicQuantize):
            made = Noise(module.spec, None)
        elif isinstance(module, QuantizedLayer):
            made = _noisy_layer(floats[path], module.weight_spec)
        if made is not None:
            parent, _, name = path.rpartition(".")
            setattr(noisy.get_submodule(parent), name, made)
    seeing = copy.deepcopy(noisy)  # a call may leave something in it
    with torch.no_grad():
        for batch in batches:
            seeing(**cloned(batch))
    for one, other in zip(noisy.modules(), seeing.modules(), strict=True):
        if isinstance(one, Noise) and isinstance(other, Noise):
            one.low, one.high = other.low, other.high
    return noisy


def _noisy_layer(layer: nn.Module, spec: TensorSpec) -> nn.Module:
    made = as_layer(copy.deepcopy(layer))
    weight = made.weight.detach()
    rows = output_rows(made, weight) if spec.per_channel else weight.reshape(1, -1)
    step = _step(rows.amin(1), rows.amax(1), spec)
    if spec.per_channel:
        step = per_output(made, step, weight)
    noisy = weight + (torch.rand_like(weight) - 0.5) * step
    made.weight = nn.Parameter(noisy, requires_grad=False)
    return made


def _step(low: Tensor, high: Tensor, spec: TensorSpec) -> Tensor:
    """Return the width of a step over each range: (ranges,) each."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    reach = 2 * torch.maximum(high, -low) if spec.symmetric else high - low
    return reach.div(2**spec.bits - (2 if spec.symmetric else 1))
