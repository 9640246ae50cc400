"""ACIQ: the clip that minimizes the expected squared error of quantizing a known distribution.

Banner et al., "Post-training 4-bit quantization of convolution networks for rapid-deployment",
2019; the report, II.A. A tensor is taken as Laplace(μ, b) or Gauss(μ, σ), and clipped to
[μ - α, μ + α], or to [0, α] where a ReLU follows. Four solutions are offered:

* "report": α = c(M)·b, where c(M) solves 2e^(-c) = 2c/(3·4^M): Table I. After a fused ReLU the
  range is [0, max(μ, 0) + c(M+1)·b]: Table II.
* "corrected": after a fused ReLU, the equation of the report's V.A,
  α/(3·2^(2M+2)) = b·e^(-(α-μ)/b), which does not assume μ = 0. For Laplace it has the closed form
  α = b·W(3·2^(2M+2)·e^(μ/b)) with Lambert's function W. Without a ReLU it is the same as "report".
* "weighted": the same with the rounding noise counted for the share P = P(X > 0) of the values that
  the ReLU lets through, where V.A counts one half whatever μ is: α = b·W(6·4^M·e^(μ/b)/P). For
  μ = 0 it is "corrected"; for μ < 0 it is b·c(M+1), whatever μ is. Without a ReLU it is "report".
* "optimal": the least of the whole expected error: of the quantizer of Eqs. (1)-(5) with its own
  levels, zero-point and cells, integrated over the distribution. The others approximate the
  rounding noise by α²/(3·4^M), which at 2 and 3 bits is far from what the quantizer does.

All functions are vectorized over channels: `mean` and `spread` are tensors of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from fxquant.affine import Grid, affine_parameters
from fxquant.spec import TensorSpec

_MAX_ELEMENTS = 1 << 22  # of a temporary in `optimal_range`: 32 MiB of float64


@cache
def laplace_constant(bits: int) -> float:
    """Return c(M) = α/b for Laplace: the solution W(3·4^M) of c·e^c = 3·4^M (Table I).

    >>> [round(laplace_constant(bits), 2) for bits in (4, 5, 6, 7, 8, 9)]
    [5.03, 6.2, 7.41, 8.65, 9.9, 11.16]
    """
    return lambert_w_of_exp(
        torch.tensor(math.log(3) + bits * math.log(4), dtype=torch.float64)
    ).item()


@cache
def gauss_constant(bits: int) -> float:
    """Return α/σ for Gauss: the solution of α·erfc(α/√2) - √(2/π)·e^(-α²/2) + α/(3·4^M) = 0.

    >>> [round(gauss_constant(bits), 2) for bits in (2, 4, 8)]
    [1.71, 2.56, 3.92]
    """

    def slope(alpha: Tensor) -> Tensor:
        tail = alpha * torch.erfc(alpha / math.sqrt(2))
        density = math.sqrt(2 / math.pi) * torch.exp(-alpha.square() / 2)
        return tail - density + alpha.div(3 * 4**bits)

    return _bisect(slope, torch.tensor(0.0), torch.tensor(20.0)).item()


def lambert_w_of_exp(log_argument: Tensor) -> Tensor:
    """Return W(e^x) for any real x, by Newton's method on u + e^u = x with W = e^u.

    The argument stays in logs: e^x overflows float64 at x = 710. In u the function is convex and
    the start lies right of the root, so every step comes closer.

    >>> lambert_w_of_exp(torch.tensor([-40.0, 1.0, 1000.0]))
    tensor([4.2484e-18, 1.0000e+00, 9.9310e+02], dtype=torch.float64)
    """
    x = log_argument.to(torch.float64)
    u = torch.where(x > 1, torch.log(x.clamp(min=1)), x)
    for _ in range(8):  # 5 reach float64's precision from the worst start, x = 1
        u = u - (u + torch.exp(u) - x) / (1 + torch.exp(u))
    return torch.exp(u)


def report_range(
    mean: Tensor, spread: Tensor, bits: int, *, distribution: str, fused_relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the report's clip (low, high): II.A.1, and II.A.2 after a fused ReLU."""
    constant = laplace_constant if distribution == "laplace" else gauss_constant
    if fused_relu:
        return torch.zeros_like(mean), mean.clamp(min=0) + constant(bits + 1) * spread
    return mean - constant(bits) * spread, mean + constant(bits) * spread


def corrected_range(
    mean: Tensor, spread: Tensor, bits: int, *, distribution: str, fused_relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the clip (low, high) by the report's V.A, solved exactly."""
    if not fused_relu:
        return report_range(mean, spread, bits, distribution=distribution, fused_relu=False)
    ratio = mean.to(torch.float64) / spread
    alpha = _stationary(ratio, torch.full_like(ratio, math.log(2)), bits, distribution)
    return torch.zeros_like(mean), (alpha * spread).to(mean.dtype)


def weighted_range(
    mean: Tensor, spread: Tensor, bits: int, *, distribution: str, fused_relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the clip (low, high) with the rounding noise weighed by the mass above zero."""
    if not fused_relu:
        return report_range(mean, spread, bits, distribution=distribution, fused_relu=False)
    ratio = mean.to(torch.float64) / spread
    if distribution == "laplace":  # P = e^(μ/b)/2 below zero, 1 - e^(-μ/b)/2 above
        above = torch.log1p(-torch.exp(-ratio.abs()) / 2)
        log_mass = torch.where(ratio < 0, ratio - math.log(2), above)
    else:
        log_mass = torch.special.log_ndtr(ratio)
    alpha = _stationary(ratio, -log_mass, bits, distribution)
    return torch.zeros_like(mean), (alpha * spread).to(mean.dtype)


def _stationary(ratio: Tensor, rarity: Tensor, bits: int, distribution: str) -> Tensor:
    """Return α in units of the spread with α·P/(6·4^M) = 2·E[(X - α)⁺], where P = e^(-rarity).

    For Laplace the right side is e^(-(α - ratio)) and α = W(6·4^M·e^ratio/P); for Gauss the root is
    found by bisection.
    """
    if distribution == "laplace":
        return lambert_w_of_exp(math.log(6) + bits * math.log(4) + ratio + rarity)
    slope_of_noise = torch.exp(-rarity).div(6 * 4**bits)

    def slope(alpha: Tensor) -> Tensor:
        z = alpha - ratio
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        tail = torch.erfc(z / math.sqrt(2)) / 2
        return alpha * slope_of_noise - 2 * (density - z * tail)

    return _bisect(slope, torch.zeros_like(ratio), ratio.clamp(min=0) + 40)


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
    (benchmarks/aciq_clips.py).
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


def clip_range(
    mean: Tensor, spread: Tensor, spec: TensorSpec, distribution: str, fused_relu: bool
) -> tuple[Tensor, Tensor]:
    """Return the clip (low, high) that `spec` asks for."""
    options = {"distribution": distribution, "fused_relu": fused_relu}
    if spec.clip == "optimal":
        return optimal_range(mean, spread, spec.bits, symmetric=spec.symmetric, **options)  # type: ignore[arg-type]
    ranges = {"report": report_range, "corrected": corrected_range, "weighted": weighted_range}
    return ranges[spec.clip](mean, spread, spec.bits, **options)  # type: ignore[arg-type]


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
        errors = expected_error(
            ratio[:, None],
            low,
            high,
            grid,
            distribution=distribution,
            fused_relu=fused_relu,
            symmetric=symmetric,
        )
        best = alphas.gather(1, errors.argmin(dim=1, keepdim=True)).squeeze(1)
        step = (end - start) / (count - 1)
        start, end = (best - step).clamp(min=1e-3), best + step
    return best


def expected_error(
    ratio: Tensor,
    low: Tensor,
    high: Tensor,
    grid: Grid,
    *,
    distribution: str,
    fused_relu: bool,
    symmetric: bool = False,
) -> Tensor:
    """Return E[(X - Q(X))²] for X of unit spread and mean `ratio`, quantized over [low, high].

    Each level q owns the cell between its neighbours' midpoints; the outer cells reach to infinity.
    The integral over a cell is ΔM₂ - 2q·ΔM₁ + q²·ΔM₀ in the partial moments Mₖ(x) = ∫ tᵏ f(t) dt up
    to x. After a fused ReLU only x > 0 counts: below, the value is exactly 0, which is a level.

    `ratio` is μ/spread; it broadcasts to `low` and `high`, which have one shape.
    """
    scale, zero_point = affine_parameters(low, high, grid, symmetric=symmetric)
    integers = torch.arange(grid.quant_min, grid.quant_max + 1, device=low.device)
    levels = scale[..., None].to(torch.float64) * (integers - zero_point[..., None])
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


def _bisect(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return the root of an increasing function between `low` and `high`, element by element."""
    low, high = low.to(torch.float64), high.to(torch.float64)
    for _ in range(64):
        middle = (low + high) / 2
        below = function(middle) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
