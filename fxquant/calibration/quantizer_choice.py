"""From an observer to the fake-quantizer that takes its place."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.observers import Observer
from fxquant.numerics.affine import Affine, activation_grid
from fxquant.numerics.channel_bits import channel_bits, uneven_affine
from fxquant.numerics.decibels import decibels


def quantizer_of(observer: Observer) -> FakeQuantize | DynamicQuantize:
    """Return the fake-quantizer for what `observer` saw, or knows without."""
    spec = observer.spec
    if spec.dynamic:
        return DynamicQuantize(spec, observer.clamp, observer.axis)
    low, high = observer.range_by(spec)
    if spec.bit_allocation and observer.axis is not None and low.dim():
        return _uneven_quantizer(observer, low, high)
    grid = activation_grid(low.min().item(), spec)
    affine = Affine.over(low, high, grid, symmetric=spec.symmetric)
    axis = observer.axis if low.dim() else None
    loss = _sqnr(observer, affine) if axis is None else math.nan
    device = observer.low.device
    return FakeQuantize(affine.map(lambda values: values.to(device)), spec, loss, axis)


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


def _sqnr(observer: Observer, affine: Affine) -> float:
    """Return signal over quantization noise of what was seen, in dB; NaN if nothing was."""
    if observer.num_batches == 0:
        return math.nan
    points, weights = observer.statistics().output.subdivided(4)
    power = (points.square() * weights).sum()
    noise = (affine.error(points).square_() * weights).sum()
    return decibels(power.item(), noise.item())
