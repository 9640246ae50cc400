"""The range of logits that changes their softmax least.

    minimize  -Σ softmax(v) · log softmax(v̂)

over both ends of the range (Nagel et al., "A white paper on neural network quantization", 2021,
3.1; the report's I.E names it). Of a layer's other outputs squared error is the better judge.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxquant.numerics.affine import Affine, activation_grid
from fxquant.recipe.spec import TensorSpec


def cross_entropy_range(
    logits: Tensor, low: float, high: float, spec: TensorSpec
) -> tuple[float, float]:
    """Return the range that changes the softmax of quantized logits least.

    Args:
        logits: v, (samples, classes).
        low: the least value seen.
        high: the greatest.
        spec: bits and symmetry.
    """
    wanted = torch.softmax(logits.to(torch.float64), dim=1)
    best, least = (low, high), math.inf
    factors = torch.linspace(0.05, 1.0, 20, dtype=torch.float64).tolist()
    center = (1.0, 1.0)
    for steps in (factors, [1 + step / 100 for step in range(-4, 5)]):
        for low_factor in steps if low < 0 else [1.0]:
            for high_factor in steps if high > 0 else [1.0]:
                ends = (
                    max(low, low * center[0] * low_factor),
                    min(high, high * center[1] * high_factor),
                )
                rounded = _rounded(logits, *ends, spec)
                loss = -(wanted * torch.log_softmax(rounded, dim=1)).sum().item()
                if loss < least:
                    best, least = ends, loss
        center = (best[0] / low if low < 0 else 1.0, best[1] / high if high > 0 else 1.0)
    return best


def _rounded(x: Tensor, low: float, high: float, spec: TensorSpec) -> Tensor:
    ends = torch.tensor([low, high], dtype=torch.float64)
    affine = Affine.over(ends[0], ends[1], activation_grid(low, spec), symmetric=spec.symmetric)
    return affine.round(x.to(torch.float64))
