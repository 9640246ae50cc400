"""The smoothing of a tensor: of those that are tried, what lets the layers behind err least.

The error is that of what all layers behind compute of a sample of rows, both sides rounded as they
will be. A tensor that gains less than is asked stays as it is.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from fxquant.calibration.quantizer_choice import quantizer_of
from fxquant.modules.batchnorm import fold_before
from fxquant.modules.layers import Layer, input_rows
from fxquant.modules.observers import Observer
from fxquant.modules.quantized_layer import quantize_layer
from fxquant.numerics.decibels import decibels
from fxquant.numerics.weight_ranges import weight_range
from fxquant.recipe.spec import TensorSpec
from fxquant.rounding.rows import grouped_weight
from fxquant.rounding.smoothing.inputs import LayerInput
from fxquant.rounding.smoothing.scales import Smoothing, smoothings
from fxquant.rounding.smoothing.seen import Seen, spread

_FLOOR = 1e-2  # of the rows' mean power, below which a row counts less


def best_smoothing(each: LayerInput, seen: Seen, least_gain: float) -> Smoothing | None:
    """Return the smoothing of least error, None if it gains too little.

    Args:
        each: the tensor.
        seen: what went by.
        least_gain: dB by which the error of the layers' results must fall.
    """
    trial = _Trial(each, seen)
    without = Smoothing.without(seen.low)
    tried = list(_smoothings(each, seen))
    before, *errors = (trial.error(smoothing) for smoothing in (without, *tried))
    least = min(range(len(tried)), key=errors.__getitem__)
    gains = before > 0 and decibels(before, max(errors[least], 1e-30)) >= least_gain
    return tried[least] if gains else None


def _smoothings(each: LayerInput, seen: Seen) -> list[Smoothing]:
    weights = [input_rows(layer, layer.weight.detach().float()) for layer, _ in each.weights()]
    met = torch.stack([rows.abs().amax(dim=1).cpu() for rows in weights]).amax(dim=0)
    shifts = [torch.zeros_like(seen.low)]
    if each.taker.shifts:
        shifts.append((seen.low + seen.high) / 2)
    found: list[Smoothing] = []
    for shift in shifts:
        found += smoothings(_widths(each, seen, shift), shift, met)
    return found


def _widths(each: LayerInput, seen: Seen, shift: Tensor) -> list[Tensor]:
    """Return the greatest |x| of each channel; then, where a range clips, that it would have."""
    widths = [torch.maximum(seen.high - shift, shift - seen.low)]
    if each.observer.spec.range == "mse" and each.observer.spec.bits <= 8:
        spec = replace(TensorSpec(bits=each.observer.spec.bits), range="mse")
        low, high = weight_range(seen.channels - shift[:, None], spec)
        widths.append(torch.maximum(high, -low).flatten().to(widths[0]))
    return widths


class _Trial:
    """The error of what the layers behind a tensor compute of rows."""

    def __init__(self, each: LayerInput, seen: Seen) -> None:
        self._seen, self._spec = seen, each.observer.spec
        self._layers = [
            (copy.deepcopy(layer).cpu().float(), spec) for layer, spec in each.weights()
        ]
        self._wanted = [torch.bmm(seen.rows, _grouped(layer).mT) for layer, _ in self._layers]

    def error(self, smoothing: Smoothing) -> float:
        """Return the squared error, both sides rounded.

        Of linear layers relative to what each row gives: tokens that attention rests on are many
        times as large as others, and norms make all equal.
        """
        observer = Observer(self._spec)
        scale, shift = (
            spread(self._layers[0][0], value) for value in (smoothing.scale, smoothing.shift)
        )
        rows = (self._seen.rows - shift) / scale
        ends = smoothing(torch.stack([self._seen.low, self._seen.high]))
        observer(torch.cat([rows.flatten(), ends.flatten()]))
        rounded = quantizer_of(observer)(rows)
        error = 0.0
        for (layer, spec), wanted in zip(self._layers, self._wanted, strict=True):
            found = torch.bmm(rounded, _moved(layer, spec, smoothing).mT)
            found += torch.bmm(shift.expand_as(rows[:, :1]), _grouped(layer).mT)
            axes = (2,) if isinstance(layer, nn.Linear) else (0, 1, 2)
            power = wanted.square().mean(dim=axes)
            noise = (found - wanted).square().mean(dim=axes)
            error += float((noise / (power + _FLOOR * power.mean()).clamp(min=1e-30)).mean())
        return error


def _moved(layer: Layer, spec: TensorSpec | None, smoothing: Smoothing) -> Tensor:
    """Return the weight that takes the scale back, rounded to nearest: grouped."""
    moved = copy.deepcopy(layer)
    fold_before(moved, smoothing.scale, torch.zeros_like(smoothing.scale))
    return _grouped(moved if spec is None else quantize_layer(moved, spec), layer)


def _grouped(layer: nn.Module, shaped_as: Layer | None = None) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return grouped_weight(shaped_as or layer, weight.detach().float())  # type: ignore[arg-type]
