"""From what was seen of each channel of an activation to its range.

Per-channel activations are the report's setting for ACIQ (III.A.2); a range computed from each
batch is what its timings measure. Both are for simulation: an integer convolution sums over
channels, and cannot if each has a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.aciq import clip_range
from fxquant.recipe import TensorSpec


@dataclass(frozen=True)
class ChannelStatistics:
    """What calibration saw of each channel of one tensor: (channels,) each."""

    low: Tensor
    high: Tensor
    ema_low: Tensor
    ema_high: Tensor
    mean: Tensor
    deviation: Tensor
    """E|x - μ|, the spread of Laplace's distribution."""
    sigma: Tensor
    """√E[(x - μ)²], the spread of Gauss's."""
    clamp: tuple[float, float] | None = None
    """As in `Statistics`."""


def channel_moments(x: Tensor, axis: int | None) -> tuple[Tensor, ...]:
    """Return minimum, maximum, mean, E|x - μ| and E[(x - μ)²] of each channel, in float32.

    Args:
        x: the tensor.
        axis: of the channels, from the end; None: of the tensor as a whole.
    """
    x = x.to(torch.float32)
    others = [d for d in range(x.dim()) if axis is None or d != x.dim() + axis]
    low, high, mean = x.amin(others), x.amax(others), x.mean(others)
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    centred = x - mean.reshape(shape)
    return low, high, mean, centred.abs().mean(others), centred.square_().mean(others)


def channel_range(statistics: ChannelStatistics, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Return the range (low, high) of each channel of an activation, (channels,) each."""
    if spec.range == "ema":
        return _clamped(statistics.ema_low, statistics.ema_high, statistics.clamp)
    if spec.range == "aciq":
        return _aciq_channels(statistics, spec)
    return _clamped(statistics.low, statistics.high, statistics.clamp)


def batch_range(
    x: Tensor, spec: TensorSpec, clamp: tuple[float, float] | None, axis: int | None
) -> tuple[Tensor, Tensor]:
    """Return the range of one batch: (), or (channels,) each where `axis` is given."""
    if spec.range == "minmax":
        others = [d for d in range(x.dim()) if axis is None or d != x.dim() + axis]
        return _clamped(x.amin(others), x.amax(others), clamp)
    low, high, mean, deviation, square = channel_moments(x, axis)
    return _aciq_channels(
        ChannelStatistics(low, high, low, high, mean, deviation, square.sqrt(), clamp), spec
    )


def _clamped(low: Tensor, high: Tensor, clamp: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    return (low, high) if clamp is None else (low.clamp(*clamp), high.clamp(*clamp))


def _aciq_channels(statistics: ChannelStatistics, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Return ACIQ's clip of each channel, never wider than what was seen.

    "auto" is Laplace here, as in the report: no values are kept to judge by, and moments alone take
    Gauss for tensors with heavier tails (ResNet-20 on CIFAR-10 at 8/8 bits: 11 dB of the logits).
    """
    is_gauss = spec.distribution == "gauss"
    fused_relu = statistics.clamp is not None and statistics.clamp[0] == 0
    low, high = _clamped(statistics.low, statistics.high, statistics.clamp)
    spread = (statistics.sigma if is_gauss else statistics.deviation).clamp(min=1e-30)
    wanted_low, wanted_high = clip_range(
        statistics.mean, spread, spec, "gauss" if is_gauss else "laplace", fused_relu
    )
    wanted_low, wanted_high = _clamped(wanted_low, wanted_high, statistics.clamp)
    flat = statistics.deviation <= 0  # one repeated value needs no clip
    return (
        torch.where(flat, low, torch.maximum(low, wanted_low.to(low.dtype))),
        torch.where(flat, high, torch.minimum(high, wanted_high.to(high.dtype))),
    )
