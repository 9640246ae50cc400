"""What a report shows of one quantizer, and of one learned rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxquant.numerics.decibels import decibels
from fxquant.stored_names import stored_as


@dataclass(frozen=True)
class Figures:
    """How a weight or an activation is quantized, and what that loses."""

    spec: str
    """Bits and range."""
    scale: float = math.nan
    """Mean over channels; NaN where each batch has its own."""
    sqnr: float = math.nan
    """Signal over quantization noise in dB; NaN where it is not known."""


@stored_as("LearnedRounding")
@dataclass(frozen=True)
class LearnedRounding:
    """What learning a layer's rounding gave, on samples that it did not learn from.

    Errors are Σ (ŷ - y)² / Σ y² of the outputs behind the activation, y the float network's.

    >>> print(LearnedRounding(steps=500, seconds=1.2, error_nearest=0.1, error_learned=0.01))
    10.0 → 20.0 dB, kept
    """

    steps: int
    """Of gradient descent."""
    seconds: float
    error_nearest: float
    """Of weights rounded to nearest; of blocks, of what learning went on from."""
    error_learned: float
    method: str = "adaround"
    """`Reconstruction.method`; of blocks "blocks", or "blocks, AdaQuant"."""

    @property
    def kept(self) -> bool:
        """Whether the learned rounding is in use: it is no worse than rounding to nearest."""
        return self.error_learned <= self.error_nearest

    def __str__(self) -> str:
        before, after = (
            decibels(1.0, max(error, 1e-30)) if math.isfinite(error) else -math.inf
            for error in (self.error_nearest, self.error_learned)
        )
        return f"{before:.1f} → {after:.1f} dB, {'kept' if self.kept else 'nearest kept'}"
