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
from fxquant.numerics.affine import Grid, activation_grid, affine_parameters, dequantize, quantize
from fxquant.numerics.channel_bits import channel_bits, uneven_parameters
from fxquant.numerics.channel_ranges import channel_range
from fxquant.numerics.cross_entropy import cross_entropy_range
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
    scale, zero_point = affine_parameters(low, high, grid, symmetric=spec.symmetric)
    axis = observer.axis if scale.dim() else None
    loss = _sqnr(observer, scale, zero_point, grid) if axis is None else math.nan
    device = observer.low.device
    return FakeQuantize(scale.to(device), zero_point.to(device), grid, spec, loss, axis)


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
    scale, zero_point, last = (each.to(device) for each in uneven_parameters(low, high, bits))
    grid = Grid(0, int(last.max()))
    return FakeQuantize(scale, zero_point, grid, observer.spec, math.nan, observer.axis, last)


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


def _sqnr(observer: Observer, scale: Tensor, zero_point: Tensor, grid: Grid) -> float:
    """Return signal over quantization noise of what was seen, in dB; NaN if nothing was."""
    if observer.num_batches == 0:
        return math.nan
    points, weights = observer.statistics().output.subdivided(4)
    noise = dequantize(quantize(points, scale, zero_point, grid), scale, zero_point) - points
    power = (points.square() * weights).sum()
    error = (noise.square() * weights).sum()
    return math.inf if error == 0 else (10 * torch.log10(power / error)).item()
