"""Signal over noise, in decibels."""

from __future__ import annotations

import torch
from torch import Tensor


def sqnr(signal: Tensor, quantized: Tensor) -> float:
    """Return the signal over the quantization noise in dB: 10·log₁₀(Σx² / Σ(x̂ - x)²).

    Infinite where nothing was lost, a signal of zeros included.

    >>> round(sqnr(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1])), 2)
    26.99
    """
    noise = (quantized - signal).to(torch.float64).square().sum()
    power = signal.to(torch.float64).square().sum()
    return float("inf") if noise == 0 else (10 * torch.log10(power / noise)).item()
