"""Scales, and shifts, of channels to try.

    sⱼ = rⱼ^α / wⱼ^(1-α),  wⱼ = max |W·ⱼ|

is SmoothQuant's (Xiao et al., 2023, Eq. 4), rⱼ the channel's width; c, the middle of its range, is
Outlier Suppression+'s (Wei et al., 2023), and RepQ-ViT's in layer norms (Li et al., 2023). Widths
are the extremes, and where ranges clip, what a range of the channel's own would be. Tried beside it
is sⱼ = max(1, rⱼ/T), which leaves all but the widest channels alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_EXPONENTS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_OCTAVES = (1.0, 2.0, 3.0, 4.0, 5.0)
_NARROWEST = 2.0**-10  # of the widest channel: one that is hardly ever open is not blown up


@dataclass(frozen=True)
class Smoothing:
    """x → (x - shift) / scale: (channels,) each."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def without(cls, like: Tensor) -> Smoothing:
        """Return the one that changes nothing."""
        return cls(torch.ones_like(like), torch.zeros_like(like))

    def __call__(self, x: Tensor, axis: int = -1) -> Tensor:
        """Return the smoothed tensor, in its own dtype."""
        sides = (1,) * (-1 - axis)
        scale, shift = (each.to(x).reshape(-1, *sides) for each in (self.scale, self.shift))
        return (x - shift) / scale


def smoothings(widths: list[Tensor], shift: Tensor, met: Tensor) -> Iterator[Smoothing]:
    """Yield what to try with one shift.

    Args:
        widths: of the shifted channels, (channels,) each.
        shift: (channels,).
        met: the greatest |weight| that meets each channel, (channels,).
    """
    for width in widths:
        for scale in _scales(width.clamp(min=float(width.max()) * _NARROWEST), met):
            yield Smoothing(scale, shift)


def _scales(width: Tensor, met: Tensor) -> Iterator[Tensor]:
    usable = (width > 0) & (met > 0)
    for exponent in _EXPONENTS:
        scale = torch.where(usable, width**exponent / met.clamp(min=1e-30) ** (1 - exponent), 1.0)
        middle = torch.exp(torch.log(scale[usable]).mean()) if usable.any() else 1.0
        yield torch.where(usable, scale / middle, 1.0)
    for octaves in _OCTAVES:
        yield (width / (width.max() * 2**-octaves).clamp(min=1e-30)).clamp(min=1.0)
