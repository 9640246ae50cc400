"""From what was seen of a tensor to the range [low, high] that its quantizer covers.

* "minmax": all that was seen.
* "ema": the exponential moving average of the batches' minima and maxima (Jacob et al., 2018).
* "percentile": all but the share of `100 - percentile` of the values.
* "mse": the range of least squared error on the values seen; of weights, errors by clipping may
  count more than errors by rounding (`clip_weight`).
* "bn": the batch norm's own shift and scale, mean β and standard deviation γ, say where the values
  are, without any data: β ± 6γ (`fxquant.graph.channel_moments`).
* "cross_entropy": for logits, the range that changes their softmax least
  (`fxquant.numerics.cross_entropy`).
* "aciq": the range of least expected error for a Laplace or Gauss distribution
  (`fxquant.numerics.aciq`), never wider than what was seen. "auto" takes, of all fits and of not
  clipping, what errs least on the values seen.

`activation_range` reads streamed `Statistics`; `weight_range` has the whole tensor at hand and
works channel by channel. Activations channel by channel are in `fxquant.numerics.channel_ranges`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.numerics.aciq import clip_range
from fxquant.numerics.affine import Affine, activation_grid
from fxquant.numerics.histogram import Histogram
from fxquant.recipe.spec import TensorSpec


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

    @classmethod
    def together(cls, several: Sequence[Statistics]) -> Statistics:
        """Return those of several tensors in one, behind their ReLUs; each counts alike."""
        outputs = [each.output for each in several]
        parts = [(each.values, each.widths, each.weights / len(several)) for each in outputs]
        values, widths, weights = (torch.cat(each) for each in zip(*parts, strict=True))
        order = values.argsort()
        return cls(
            low=min(each.clamped(each.low) for each in several),
            high=max(each.clamped(each.high) for each in several),
            ema_low=min(each.clamped(each.ema_low) for each in several),
            ema_high=max(each.clamped(each.ema_high) for each in several),
            histogram=Histogram(values[order], widths[order], weights[order]),
        )


def activation_range(statistics: Statistics, spec: TensorSpec) -> tuple[float, float]:
    """Return the range (low, high) of an activation, in its own units."""
    low, high = statistics.clamped(statistics.low), statistics.clamped(statistics.high)
    if spec.range in ("minmax", "bn") or low == high:  # "bn" sees data where no batch norm helps
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
    return _aciq_range(statistics, spec)


def _aciq_range(statistics: Statistics, spec: TensorSpec) -> tuple[float, float]:
    low, high = statistics.clamped(statistics.low), statistics.clamped(statistics.high)
    fused_relu = statistics.clamp is not None and statistics.clamp[0] == 0
    ends = torch.tensor([low, high], dtype=torch.float64)
    clips = [
        clip_range(mean, spread, spec, distribution, fused_relu)
        for distribution, mean, spread in _fits(statistics.histogram, spec, fused_relu)
        if spread > 0
    ]
    if spec.distribution == "auto" or not clips:
        clips.append((ends[0], ends[1]))  # a tail heavier than all of them is better not clipped
    lows = torch.stack([clip[0] for clip in clips]).clamp(low, max(low, 0))
    highs = torch.stack([clip[1] for clip in clips]).clamp(min(high, 0), high)
    # The values judge: likelihood would go by the body, and the clip is in the tail.
    index = _errors(statistics.output, lows, highs, spec).argmin()
    return lows[index].item(), highs[index].item()


def _fits(
    histogram: Histogram, spec: TensorSpec, fused_relu: bool
) -> list[tuple[str, Tensor, Tensor]]:
    """Return the distributions to try: name, mean and spread of each.

    Of a Laplace tensor with μ ≤ 0 a ReLU lets an exponential through, whatever μ is; "auto" also
    fits that one, Laplace(0, E[x | x > 0]), which the values below zero cannot mislead.
    """
    mean = histogram.mean()
    fits = []
    if spec.distribution in ("auto", "laplace"):
        fits.append(("laplace", mean, histogram.mean_deviation()))
    if spec.distribution in ("auto", "gauss"):
        fits.append(("gauss", mean, histogram.standard_deviation()))
    if spec.distribution == "auto" and fused_relu:
        fits.append(("laplace", torch.zeros_like(mean), histogram.positive_mean()))
    return fits


def _least_error(
    histogram: Histogram, low: float, high: float, spec: TensorSpec
) -> tuple[float, float]:
    """Return the range of least squared error, by search over both ends."""
    best = torch.tensor([low, high], dtype=torch.float64)
    common = torch.logspace(-12, 0, 73, base=2, dtype=torch.float64)  # to an outlier of 4096σ
    pairs = [(common, common)]
    if low < 0 < high:  # an outlier may be on one side only
        wide = torch.logspace(-7, 0, 22, base=2, dtype=torch.float64)
        lows, highs = torch.meshgrid(wide, wide, indexing="ij")
        pairs = [(torch.cat([common, lows.flatten()]), torch.cat([common, highs.flatten()]))]
    near = torch.linspace(0.76, 1.32, 29, dtype=torch.float64)
    pairs += [(torch.ones_like(near), near), (near, torch.ones_like(near))] * 2
    for number, (low_factors, high_factors) in enumerate(pairs):
        lows = (best[0] * low_factors).clamp(low, max(low, 0))
        highs = (best[1] * high_factors).clamp(min(high, 0), high)
        index = _errors(histogram, lows, highs, spec, parts=4 if number else 1).argmin()
        best = torch.stack([lows[index], highs[index]])
    return best[0].item(), best[1].item()


def _errors(
    histogram: Histogram, lows: Tensor, highs: Tensor, spec: TensorSpec, parts: int = 4
) -> Tensor:
    """Return the mean squared error of quantizing over each of the ranges: (n,) -> (n,).

    Each bin counts as `parts` points, evenly spread.
    """
    points, weights = histogram.subdivided(parts)
    grid = activation_grid(histogram.values[0].item(), spec)
    affine = Affine.over(lows[:, None], highs[:, None], grid, symmetric=spec.symmetric)
    return (affine.error(points).square_() * weights).sum(dim=1)
