"""From what was seen of each channel of an activation to its range.

Per-channel activations are the report's setting for ACIQ (III.A.2); a range computed from each
batch is what its timings measure. Both are for simulation: an integer convolution sums over
channels, and cannot if each has a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.numerics.aciq import clip_range
from fxquant.numerics.affine import Affine, Grid, along_axis
from fxquant.recipe.spec import TensorSpec

_VALUES = 4096  # to judge a range by


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
    centred = x - along_axis(mean, axis, x.dim())
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
    """Return the range of one batch: (), or (channels,) each where `axis` is given.

    ACIQ with `distribution="auto"` clips for Laplace unless that errs more, on some thousand of the
    values, than not to clip. (Gauss's clip behind a ReLU has no closed form: too slow here.)
    """
    others = [d for d in range(x.dim()) if axis is None or d != x.dim() + axis]
    seen = torch.aminmax(x) if axis is None else (x.amin(others), x.amax(others))
    low, high = _clamped(seen[0].to(torch.float32), seen[1].to(torch.float32), clamp)
    if spec.range == "minmax":
        return low, high
    mean = x.mean(others, dtype=torch.float32)
    centred = x - along_axis(mean, axis, x.dim())
    if spec.distribution == "gauss":
        sigma = centred.square_().mean(others, dtype=torch.float32).sqrt()
        return _clip(mean, sigma, (low, high), spec, "gauss", clamp)
    deviation = centred.abs_().mean(others, dtype=torch.float32)
    clipped = _clip(mean, deviation, (low, high), spec, "laplace", clamp)
    if spec.distribution == "laplace":
        return clipped
    return _least_error([clipped, (low, high)], _some_values(x, axis, clamp), spec)


def _some_values(x: Tensor, axis: int | None, clamp: tuple[float, float] | None) -> Tensor:
    """Return values spread over the tensor, or over each channel: (1 or channels, n), float32."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)  # so that flattening copies nothing
    rows = x.permute(order).reshape(1, -1)
    if axis is not None:
        rows = x.movedim(axis, 0)
        while rows.dim() > 2:  # the samples first, then the lines, then the positions in them
            size = max(rows[0].numel() // _VALUES, 1)
            rows = rows[:, :: min(size, rows.shape[1])].flatten(1, 2)
    stride = max(rows.shape[1] // _VALUES, 1)
    values = rows[:, :: stride + (stride > 1 and stride % 2 == 0)].to(torch.float32)
    return values if clamp is None else values.clamp(*clamp)


def _least_error(
    ranges: list[tuple[Tensor, Tensor]], values: Tensor, spec: TensorSpec
) -> tuple[Tensor, Tensor]:
    """Return the range, of each row of `values`, over which quantizing them errs least."""
    lows, highs = (torch.stack(ends).reshape(len(ranges), -1) for ends in zip(*ranges, strict=True))
    grid = Grid.of(spec.bits, signed=spec.symmetric)
    affine = Affine.over(lows[..., None], highs[..., None], grid, symmetric=spec.symmetric)
    best = affine.error(values).square_().sum(-1).argmin(0, keepdim=True)  # (1, rows)
    shape = ranges[0][0].shape
    return lows.gather(0, best).reshape(shape), highs.gather(0, best).reshape(shape)


def _clamped(low: Tensor, high: Tensor, clamp: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    return (low, high) if clamp is None else (low.clamp(*clamp), high.clamp(*clamp))


def _aciq_channels(statistics: ChannelStatistics, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Return ACIQ's clip of each channel.

    "auto" is Laplace here, as in the report: no values are kept to judge by, and moments alone take
    Gauss for tensors with heavier tails (ResNet-20 on CIFAR-10 at 8/8 bits: 11 dB of the logits).
    """
    seen = _clamped(statistics.low, statistics.high, statistics.clamp)
    if spec.distribution == "gauss":
        return _clip(statistics.mean, statistics.sigma, seen, spec, "gauss", statistics.clamp)
    return _clip(statistics.mean, statistics.deviation, seen, spec, "laplace", statistics.clamp)


def _clip(
    mean: Tensor,
    spread: Tensor,
    seen: tuple[Tensor, Tensor],
    spec: TensorSpec,
    distribution: str,
    clamp: tuple[float, float] | None,
) -> tuple[Tensor, Tensor]:
    """Return the clip (low, high) for a distribution, never wider than what was `seen`."""
    low, high = seen
    fused_relu = clamp is not None and clamp[0] == 0
    wanted = clip_range(mean, spread.clamp(min=1e-30), spec, distribution, fused_relu)
    wanted_low, wanted_high = _clamped(wanted[0].to(low.dtype), wanted[1].to(low.dtype), clamp)
    flat = spread <= 0  # one repeated value needs no clip
    return (
        torch.where(flat, low, torch.maximum(low, wanted_low)),
        torch.where(flat, high, torch.minimum(high, wanted_high)),
    )
