"""From an observer, or several, to the fake-quantizer that takes their place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.observers import Observer, statistics_of
from fxquant.numerics.activation_ranges import activation_range
from fxquant.numerics.affine import Affine, activation_grid
from fxquant.numerics.channel_bits import channel_bits, uneven_affine
from fxquant.numerics.decibels import decibels
from fxquant.recipe.spec import finer

Quantizer: TypeAlias = FakeQuantize | DynamicQuantize


def quantizer_of(*observers: Observer) -> Quantizer:
    """Return the fake-quantizer for what observers saw, or know without.

    Several share one if each has one range for all channels, from calibration: it gets the most of
    their bits.
    """
    first, spec = observers[0], finer(*(each.spec for each in observers))
    if spec.dynamic:
        return DynamicQuantize(spec, first.clamp, first.axis)
    if len(observers) == 1:
        low, high = first.range_by(spec)
    elif all(each.needs_data for each in observers):
        ends = activation_range(statistics_of(observers), spec)
        low, high = torch.tensor(ends, dtype=torch.float64).unbind()
    else:
        ranges = [each.range_by(spec) for each in observers]
        low = torch.stack([low for low, _ in ranges]).amin()
        high = torch.stack([high for _, high in ranges]).amax()
    if spec.bit_allocation and first.axis is not None and low.dim():
        return _uneven_quantizer(first, low, high)
    grid = activation_grid(low.min().item(), spec)
    affine = Affine.over(low, high, grid, symmetric=spec.symmetric)
    axis = first.axis if low.dim() else None
    loss = _sqnr(observers, affine) if axis is None else math.nan
    device = first.low.device
    return FakeQuantize(affine.map(lambda values: values.to(device)), spec, loss, axis)


def sharing_cost(own: Quantizer, shared: Quantizer, observers: Sequence[Observer]) -> float:
    """Return by how many dB the noise grows, of what they saw, with `shared` in place of `own`."""
    noise, least = noise_of(observers, shared), noise_of(observers, own)
    return decibels(noise, least) if noise > least else 0.0


def noise_of(observers: Sequence[Observer], quantizer: Quantizer) -> float:
    """Return the mean squared error of rounding what they saw; that of the step if they saw none.

    In the square of the tensor's units.
    """
    assert isinstance(quantizer, FakeQuantize)
    affine = quantizer.affine.map(Tensor.cpu)
    if any(each.num_batches == 0 for each in observers):
        return affine.scale.item() ** 2 / 12
    points, weights = statistics_of(observers).output.subdivided(4)
    return float((affine.error(points).square_() * weights).sum())


def _uneven_quantizer(observer: Observer, low: Tensor, high: Tensor) -> FakeQuantize:
    """Return a quantizer whose channels have bits of their own, by the widths of their ranges."""
    bits = channel_bits(high.clamp_min(0) - low.clamp_max(0), observer.spec.bits)
    for width in sorted(set(bits.tolist())):  # fewer bits clip earlier
        spec = replace(observer.spec, bits=max(width, 2))
        own_low, own_high = observer.range_by(spec)
        low, high = (
            torch.where(bits == width, own_low, low),
            torch.where(bits == width, own_high, high),
        )
    device = observer.low.device
    affine, last = uneven_affine(low, high, bits)
    affine = affine.map(lambda values: values.to(device))
    return FakeQuantize(affine, observer.spec, math.nan, observer.axis, last.to(device))


def _sqnr(observers: Sequence[Observer], affine: Affine) -> float:
    """Return signal over quantization noise of what was seen, in dB; NaN if nothing was."""
    if any(each.num_batches == 0 for each in observers):
        return math.nan
    points, weights = statistics_of(observers).output.subdivided(4)
    power = (points.square() * weights).sum()
    noise = (affine.error(points).square_() * weights).sum()
    return decibels(power.item(), noise.item())
