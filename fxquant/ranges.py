"""From what was seen of a tensor to the range [low, high] that its quantizer covers.

* "minmax": all that was seen.
* "ema": the exponential moving average of the batches' minima and maxima (Jacob et al., 2018).
* "percentile": all but the share of `100 - percentile` of the values.
* "mse": the range of least squared error on the values seen.
* "aciq": the range of least expected error for a Laplace or Gauss distribution (`fxquant.aciq`),
  never wider than what was seen.

`activation_range` reads streamed `Statistics`; `weight_range` has the whole tensor at hand and
works channel by channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.aciq import corrected_range, optimal_range, report_range
from fxquant.affine import Grid, affine_parameters, dequantize, quantize
from fxquant.histogram import Histogram
from fxquant.recipe import TensorSpec

_ACIQ = {"report": report_range, "corrected": corrected_range, "optimal": optimal_range}


@dataclass(frozen=True)
class Statistics:
    """What calibration saw of one tensor."""

    low: float
    high: float
    ema_low: float
    ema_high: float
    histogram: Histogram
    clamp: tuple[float, float] | None = None
    """Bounds of the fused ReLU: the rest describes the tensor before it, the range is for after."""

    @property
    def output(self) -> Histogram:
        """The histogram of the tensor that is quantized: behind the fused ReLU."""
        return self.histogram.clamped(*self.clamp) if self.clamp else self.histogram

    def clamped(self, value: float) -> float:
        """Return `value` as the fused ReLU lets it through."""
        return min(max(value, self.clamp[0]), self.clamp[1]) if self.clamp else value


def activation_range(statistics: Statistics, spec: TensorSpec) -> tuple[float, float]:
    """Return the range (low, high) of an activation, in its own units."""
    low, high = statistics.clamped(statistics.low), statistics.clamped(statistics.high)
    if spec.range == "minmax" or low == high:
        return low, high
    if spec.range == "ema":
        return statistics.clamped(statistics.ema_low), statistics.clamped(statistics.ema_high)
    if spec.range == "percentile":
        outside = (1 - spec.percentile / 100) / 2 if low < 0 < high else 1 - spec.percentile / 100
        histogram = statistics.output
        clipped_low = histogram.quantile(outside).item() if low < 0 else low
        clipped_high = histogram.quantile(1 - outside).item() if high > 0 else high
        return max(low, clipped_low), min(high, clipped_high)
    if spec.range == "mse":
        return _least_error(statistics.output, low, high, spec)
    wanted_low, wanted_high = _aciq_range(statistics, spec)
    return max(low, wanted_low), max(low, min(high, wanted_high))


def activation_grid(low: float, spec: TensorSpec) -> Grid:
    """Return the integers for an activation whose range starts at `low`.

    Signed only where a symmetric quantizer has negative values to hold (Eqs. 7 and 8).
    """
    return Grid.of(spec.bits, signed=spec.symmetric and low < 0)


def _aciq_range(statistics: Statistics, spec: TensorSpec) -> tuple[float, float]:
    histogram = statistics.histogram
    mean, deviation = histogram.mean(), histogram.mean_deviation()
    sigma = histogram.standard_deviation()
    distribution, spread = _fit(spec, deviation, sigma)
    if spread <= 0:  # one value, repeated
        return -math.inf, math.inf
    fused_relu = statistics.clamp is not None and statistics.clamp[0] == 0
    options = {"symmetric": spec.symmetric} if spec.clip == "optimal" else {}
    low, high = _ACIQ[spec.clip](
        mean, spread, spec.bits, distribution=distribution, fused_relu=fused_relu, **options
    )
    return low.item(), high.item()


def _fit(spec: TensorSpec, deviation: Tensor, sigma: Tensor) -> tuple[str, Tensor]:
    """Return the distribution to assume and its spread: the likelier one for "auto".

    The mean log-likelihoods at the fitted spreads are -ln(2b) - 1 and -ln(σ√(2π)) - 1/2.
    """
    laplace_likelier = 2 * math.e * deviation < math.sqrt(2 * math.pi * math.e) * sigma
    if spec.distribution == "laplace" or (spec.distribution == "auto" and laplace_likelier):
        return "laplace", deviation
    return "gauss", sigma


def _least_error(
    histogram: Histogram, low: float, high: float, spec: TensorSpec
) -> tuple[float, float]:
    """Return the range of least squared error: both ends scaled together, then each alone."""
    points, weights = histogram.subdivided(4)

    def errors(lows: Tensor, highs: Tensor) -> Tensor:
        grid = activation_grid(low, spec)
        scale, zero_point = affine_parameters(lows, highs, grid, symmetric=spec.symmetric)
        scale, zero_point = scale.to(torch.float64)[:, None], zero_point[:, None]
        rounded = dequantize(quantize(points, scale, zero_point, grid), scale, zero_point)
        return ((rounded - points).square() * weights).sum(dim=1)

    best = torch.tensor([low, high], dtype=torch.float64)
    wide = torch.logspace(-12, 0, 73, base=2, dtype=torch.float64)  # down to an outlier of 4096σ
    near = torch.linspace(0.8, 1.2, 41, dtype=torch.float64)
    ones = torch.ones_like(near)
    for low_factors, high_factors in ((wide, wide), (ones, near), (near, ones), (ones, near)):
        lows = (best[0] * low_factors).clamp(min=low)
        highs = (best[1] * high_factors).clamp(max=high)
        index = errors(lows, highs).argmin()
        best = torch.stack([lows[index], highs[index]])
    return best[0].item(), best[1].item()


def weight_range(rows: Tensor, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Return the range (low, high) of each row of a weight, float64, (rows,) each.

    Args:
        rows: (rows, values): a row for each output channel, or one row for the whole tensor.
        spec: how to choose it.
    """
    low, high = (bound.to(torch.float64) for bound in torch.aminmax(rows, dim=1))
    if spec.range == "percentile":
        outside = (1 - spec.percentile / 100) / 2
        return _quantile(rows, outside), _quantile(rows, 1 - outside)
    if spec.range == "mse":
        return _least_error_rows(rows, low, high, spec)
    if spec.range == "aciq":
        return _aciq_rows(rows.to(torch.float64), low, high, spec)
    return low, high


def _quantile(rows: Tensor, share: float) -> Tensor:
    """Return the quantile of each row; `torch.quantile` refuses more than 2^24 values."""
    rank = min(rows.shape[1], max(1, math.ceil(share * rows.shape[1])))
    return rows.kthvalue(rank, dim=1).values.to(torch.float64)


def _aciq_rows(rows: Tensor, low: Tensor, high: Tensor, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    mean = rows.mean(dim=1)
    deviation = (rows - mean[:, None]).abs().mean(dim=1)
    sigma = rows.std(dim=1, correction=0)
    distribution, spread = _fit(spec, deviation.mean(), sigma.mean())
    spread = deviation if distribution == "laplace" else sigma
    options = {"symmetric": spec.symmetric} if spec.clip == "optimal" else {}
    wanted_low, wanted_high = _ACIQ[spec.clip](
        mean, spread, spec.bits, distribution=distribution, fused_relu=False, **options
    )
    flat = spread <= 0  # channels of one repeated value, which need no clip
    wanted_low = torch.where(flat, low, torch.maximum(low, wanted_low))
    wanted_high = torch.where(flat, high, torch.minimum(high, wanted_high))
    return wanted_low, wanted_high


def _least_error_rows(
    rows: Tensor, low: Tensor, high: Tensor, spec: TensorSpec
) -> tuple[Tensor, Tensor]:
    """Return each row's range of least squared error among common shrinkings of its ends."""
    grid = Grid.of(spec.bits, signed=True)

    def error(factor: Tensor) -> Tensor:
        scale, zero_point = affine_parameters(
            low * factor, high * factor, grid, symmetric=spec.symmetric
        )
        scale, zero_point = scale[:, None], zero_point[:, None]
        rounded = dequantize(quantize(rows, scale, zero_point, grid), scale, zero_point)
        return rounded.sub_(rows).square_().sum(dim=1)

    best = torch.ones_like(low)
    least = error(best)

    def try_factors(factors: Callable[[Tensor], list[Tensor]]) -> None:
        nonlocal best, least
        for factor in factors(best):
            current = error(factor)
            best = torch.where(current < least, factor, best)
            least = torch.minimum(current, least)

    try_factors(lambda best: [best * share / 20 for share in range(19, 3, -1)])
    try_factors(
        lambda best: [(best + step / 100).clamp(max=1) for step in (-4, -3, -2, -1, 1, 2, 3, 4)]
    )
    return low * best, high * best
