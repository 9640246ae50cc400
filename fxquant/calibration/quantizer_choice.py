"""From an observer to the fake-quantizer that takes its place."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fxquant.modules.channel_observers import ChannelObserver
from fxquant.modules.dynamic_quantize import DynamicQuantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.observers import LogitObserver, Observer
from fxquant.numerics.activation_ranges import activation_range
from fxquant.numerics.affine import Affine, activation_grid
from fxquant.numerics.channel_bits import channel_bits, uneven_affine
from fxquant.numerics.channel_ranges import channel_range
from fxquant.numerics.cross_entropy import cross_entropy_range
from fxquant.numerics.decibels import decibels
from fxquant.recipe.spec import TensorSpec


def quantizer_of(observer: Observer) -> FakeQuantize | DynamicQuantize:
    """Return the fake-quantizer for what `observer` saw, or knows without."""
    spec = observer.spec
    if spec.dynamic:
        return DynamicQuantize(spec, observer.clamp, observer.axis)
    low, high = _range(observer, spec)
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
        own_low, own_high = _range(observer, spec)
        low, high = (
            torch.where(bits == width, own_low, low),
            torch.where(bits == width, own_high, high),
        )
    device = observer.low.device
    affine, last = uneven_affine(low, high, bits)
    affine = affine.map(lambda values: values.to(device))
    return FakeQuantize(affine, observer.spec, math.nan, observer.axis, last.to(device))


def _range(observer: Observer, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Return the range (low, high) by `spec`, () or (channels,) each, on the CPU."""
    if observer.known is not None:
        return observer.known[0].cpu(), observer.known[1].cpu()
    if isinstance(observer, ChannelObserver):
        channels = observer.channel_statistics()
        if channels is not None:
            low, high = channel_range(channels, spec)
            return low.cpu(), high.cpu()
    if isinstance(observer, LogitObserver) and spec.range == "cross_entropy":
        ends = cross_entropy_range(
            observer.rows.cpu(), observer.low.item(), observer.high.item(), spec
        )
    else:
        ends = activation_range(observer.statistics(), spec)
    return tuple(torch.tensor(ends, dtype=torch.float64).unbind())  # type: ignore[return-value]


def _sqnr(observer: Observer, affine: Affine) -> float:
    """Return signal over quantization noise of what was seen, in dB; NaN if nothing was."""
    if observer.num_batches == 0:
        return math.nan
    points, weights = observer.statistics().output.subdivided(4)
    power = (points.square() * weights).sum()
    noise = (affine.error(points).square_() * weights).sum()
    return decibels(power.item(), noise.item())
