"""A histogram whose bins are float32's own: sign, exponent and the first five bits of the mantissa.

There is no range to guess and none to extend, so statistics of any number of batches, seen in any
order or on any number of machines, are the sum of their counts. A bin is 1/32 to 1/64 of its value
wide. 16,384 counts take 128 KiB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_BINS = 1 << 14
_SHIFT = 18  # of float32's 32 bits, 14 name the bin
_MAX_PER_SAMPLE = 1 << 14


def count_values(x: Tensor) -> Tensor:
    """Return the number of values of `x` in each bin: (NUM_BINS,), int64.

    Of each sample (first axis) at most about 16,384 values are counted, evenly spread, always the
    same ones whatever batch the sample comes in. `x` must be finite.

    >>> count_values(torch.tensor([[1.0, 1.0, -2.0]])).sum()
    tensor(3)
    """
    values = _spread_sample(x).to(torch.float32).contiguous()
    bins = (values.view(torch.int32) >> _SHIFT) + NUM_BINS // 2
    return torch.bincount(bins.reshape(-1), minlength=NUM_BINS)


def _spread_sample(x: Tensor) -> Tensor:
    if x.dim() < 2:
        return x
    flat = _in_memory_order(x).flatten(1)
    size = flat.shape[1]
    stride = math.ceil(size / _MAX_PER_SAMPLE)
    while math.gcd(stride, size) > 1 and stride > 1:  # else a stride of the width sees one column
        stride += 1
    return flat[:, ::stride]


def _in_memory_order(x: Tensor) -> Tensor:
    """Return `x` with its axes behind the first permuted so that flattening copies nothing."""
    if x.is_contiguous():
        return x
    return x.permute(0, *sorted(range(1, x.dim()), key=x.stride, reverse=True))


@dataclass(frozen=True)
class Histogram:
    """Occupied bins in ascending order: centres, widths and weights, float64, (n,) each.

    The weights sum to 1.
    """

    values: Tensor
    widths: Tensor
    weights: Tensor

    @classmethod
    def of_counts(cls, counts: Tensor, low: float, high: float) -> Histogram:
        """Return the histogram of `counts` (NUM_BINS,) of values known to lie in [low, high]."""
        occupied = counts.nonzero().squeeze(1)
        signed = occupied - NUM_BINS // 2
        first = (signed << _SHIFT).to(torch.int32).view(torch.float32).to(torch.float64)
        last = ((signed << _SHIFT) | ((1 << _SHIFT) - 1)).to(torch.int32)
        last = last.view(torch.float32).to(torch.float64)
        zero = (signed == 0) | (signed == -NUM_BINS // 2)  # +0 and -0, and what is below 2^-126
        first, last = first.masked_fill(zero, 0), last.masked_fill(zero, 0)
        first, last = first.clamp(low, high), last.clamp(low, high)
        values = (first + last) / 2
        order = values.argsort()
        weights = counts[occupied].to(torch.float64)
        return cls(values[order], (last - first).abs()[order], (weights / weights.sum())[order])

    def clamped(self, low: float, high: float) -> Histogram:
        """Return the histogram of the values behind a clamp to [low, high]: a ReLU's output."""
        start = (self.values - self.widths / 2).clamp(low, high)
        end = (self.values + self.widths / 2).clamp(low, high)
        return Histogram((start + end) / 2, end - start, self.weights)

    def mean(self) -> Tensor:
        """Return μ = E[x]."""
        return (self.values * self.weights).sum()

    def mean_deviation(self) -> Tensor:
        """Return b = E|x - μ|, the spread of Laplace's distribution."""
        return ((self.values - self.mean()).abs() * self.weights).sum()

    def standard_deviation(self) -> Tensor:
        """Return σ = √E[(x - μ)²], the spread of Gauss's distribution."""
        return ((self.values - self.mean()).square() * self.weights).sum().sqrt()

    def positive_mean(self) -> Tensor:
        """Return E[x | x > 0], or 0 where no value is positive."""
        weights = self.weights * (self.values > 0)
        return (self.values * weights).sum() / weights.sum().clamp(min=1e-300)

    def quantile(self, share: float) -> Tensor:
        """Return the value that `share` of the mass lies below, interpolated within a bin."""
        below = torch.cumsum(self.weights, 0)
        last = torch.nonzero(self.weights).max()
        index = torch.searchsorted(below, torch.tensor(share, dtype=below.dtype)).clamp(max=last)
        inside = 1 - (below[index] - share) / self.weights[index]
        return self.values[index] + self.widths[index] * (inside.clamp(0, 1) - 0.5)

    def subdivided(self, parts: int) -> tuple[Tensor, Tensor]:
        """Return points and weights, (parts·n,) each: every bin split evenly."""
        offsets = (
            torch.arange(parts, dtype=torch.float64, device=self.values.device) + 0.5
        ) / parts
        points = self.values[:, None] + self.widths[:, None] * (offsets - 0.5)
        weights = (self.weights[:, None] / parts).expand_as(points)
        return points.reshape(-1), weights.reshape(-1)
