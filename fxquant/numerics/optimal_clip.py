"""The clip of least expected error, of Laplace's and Gauss's distribution, by search.

The error is that of the quantizer itself: its levels, its zero-point and its cells, integrated over
the distribution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.numerics.affine import Affine, Grid
from fxquant.numerics.closed_clips import laplace_constant, weighted_range

_MAX_ELEMENTS = 1 << 22  # of a temporary in `optimal_range`: 32 MiB of float64


def optimal_range(
    mean: Tensor,
    spread: Tensor,
    bits: int,
    *,
    distribution: str,
    fused_relu: bool,
    symmetric: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the clip (low, high) of the least expected squared error, found by search.

    Past 8 bits `weighted_range` is returned; at 8 its error is less than 0.1 % above the least
    (benchmarks/ranges/aciq_clips.py).
    """
    if bits > 8:
        return weighted_range(mean, spread, bits, distribution=distribution, fused_relu=fused_relu)
    grid = Grid.of(bits, signed=symmetric and not fused_relu)
    ratio = (mean.to(torch.float64) / spread).reshape(-1)
    per_chunk = max(1, _MAX_ELEMENTS // (_COARSE * (grid.steps + 1)))
    alpha = torch.cat(
        [
            _search(chunk, bits, grid, distribution, fused_relu, symmetric)
            for chunk in torch.split(ratio, per_chunk)
        ]
    )
    alpha = alpha.reshape(mean.shape).to(mean.dtype) * spread
    return (torch.zeros_like(mean), alpha) if fused_relu else (mean - alpha, mean + alpha)


_COARSE, _FINE = 129, 65
_FAR = 1e4  # spreads from the mean: nothing is out there


def _search(
    ratio: Tensor, bits: int, grid: Grid, distribution: str, fused_relu: bool, symmetric: bool
) -> Tensor:
    """Return the best α in units of the spread, for each ratio μ/spread: (n,) -> (n,)."""
    widest = 1.5 * laplace_constant(bits + 1)
    offset = ratio.clamp(min=0) if fused_relu else ratio.abs()
    start = torch.full_like(ratio, 1e-2)
    end = widest + offset
    for count in (_COARSE, _FINE, _FINE):
        share = torch.linspace(0, 1, count, dtype=ratio.dtype, device=ratio.device)
        alphas = start[:, None] + (end - start)[:, None] * share  # (n, count)
        low = torch.zeros_like(alphas) if fused_relu else ratio[:, None] - alphas
        high = alphas if fused_relu else ratio[:, None] + alphas
        affine = Affine.over(low, high, grid, symmetric=symmetric)
        errors = expected_error(ratio[:, None], affine, distribution, fused_relu)
        best = alphas.gather(1, errors.argmin(dim=1, keepdim=True)).squeeze(1)
        step = (end - start) / (count - 1)
        start, end = (best - step).clamp(min=1e-3), best + step
    return best


def expected_error(ratio: Tensor, affine: Affine, distribution: str, fused_relu: bool) -> Tensor:
    """Return E[(X - Q(X))²] for X of unit spread and mean `ratio`, quantized by `affine`.

    Each level q owns the cell between its neighbours' midpoints; the outer cells reach to infinity.
    The integral over a cell is ΔM₂ - 2q·ΔM₁ + q²·ΔM₀ in the partial moments Mₖ(x) = ∫ tᵏ f(t) dt up
    to x. After a fused ReLU only x > 0 counts: below, the value is exactly 0, which is a level.

    `ratio` is μ/spread; it broadcasts to the shape of `affine`.
    """
    grid, device = affine.grid, affine.scale.device
    integers = torch.arange(grid.quant_min, grid.quant_max + 1, dtype=torch.float64, device=device)
    levels = affine.map(lambda values: values[..., None]).dequantize(integers)
    lowest = torch.full_like(levels[..., :1], -_FAR)
    if fused_relu:
        levels = levels.clamp(min=0)
        lowest = torch.zeros_like(lowest) - ratio[..., None]
    levels = levels - ratio[..., None]  # from here on X has mean 0, so that no digits cancel
    edges = (levels[..., 1:] + levels[..., :-1]) / 2
    edges = torch.cat([lowest, edges, torch.full_like(lowest, _FAR)], dim=-1).clamp(-_FAR, _FAR)
    moments = _laplace_moments if distribution == "laplace" else _gauss_moments
    m0, m1, m2 = (moment.diff(dim=-1) for moment in moments(edges))
    return (m2 - 2 * levels * m1 + levels**2 * m0).sum(dim=-1)


def _laplace_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return M₀, M₁, M₂ of Laplace(0, 1) up to x, each from its limit at infinity."""
    tail = torch.exp(-x.abs()) / 2
    left = x < 0
    return (
        torch.where(left, tail, 1 - tail),
        torch.where(left, tail * (x - 1), -tail * (x + 1)),
        torch.where(left, tail * (x**2 - 2 * x + 2), 2 - tail * (x**2 + 2 * x + 2)),
    )


def _gauss_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return M₀, M₁, M₂ of Gauss(0, 1) up to x."""
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(x)
    return below, -density, below - x * density
