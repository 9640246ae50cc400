"""Signal over noise, in decibels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two powers, or sums of squares, in dB: 10·log₁₀(signal / noise).

    >>> decibels(1.0, 0.01), decibels(0.0, 0.0), decibels(0.0, 1.0)
    (20.0, inf, -inf)
    """
    if noise == 0:  # nothing was lost, of a signal of zeros either
        return math.inf
    ratio = signal / noise
    return -math.inf if ratio == 0 else 10 * math.log10(ratio)


def sqnr(signal: Tensor, quantized: Tensor) -> float:
    """Return the signal over the quantization noise in dB: 10·log₁₀(Σx² / Σ(x̂ - x)²).

    >>> round(sqnr(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1])), 2)
    26.99
    """
    noise = (quantized - signal).to(torch.float64).square().sum()
    power = signal.to(torch.float64).square().sum()
    return decibels(power.item(), noise.item())
