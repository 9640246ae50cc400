"""ACIQ's clips in closed form: the report's, the corrected one, the weighted one.

`fxquant.numerics.aciq` says what each of them minimizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


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


def _bisect(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return the root of an increasing function between `low` and `high`, element by element."""
    low, high = low.to(torch.float64), high.to(torch.float64)
    for _ in range(64):
        middle = (low + high) / 2
        below = function(middle) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
