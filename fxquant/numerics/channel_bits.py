"""Bits for each channel of an activation: more for wide channels, fewer for narrow ones.

    B_c = B · α_c^⅔ / Σ α^⅔,  Σ B_c = B = n · 2^M

levels for channel c of range α_c, where all n channels together have as many as with M bits each:
where the expected rounding error Σ α_c² / (12 · B_c²) is least (Banner et al., "Post training 4-bit
quantization of convolutional networks for rapid-deployment", 2019, 4). Levels are powers of 2: the
shares are rounded down, and the levels that this leaves go to those that were rounded furthest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxquant.numerics.affine import Affine, Grid

_LEAST, _MOST = 1, 8


def channel_bits(ranges: Tensor, bits: int) -> Tensor:
    """Return the bits of each channel, 1 to 8: int64 (channels,).

    Together they have no more levels than with `bits` everywhere.

    Args:
        ranges: α, the width of each channel's range, (channels,).
        bits: M.

    >>> channel_bits(torch.tensor([8.0, 1.0, 1.0, 1.0]), 4)
    tensor([5, 4, 3, 3])
    """
    shares = ranges.to(torch.float64).clamp_min(0).pow(2 / 3)
    total = shares.sum()
    if total == 0:
        return torch.full(ranges.shape, bits, dtype=torch.int64)
    levels = len(ranges) * 2**bits
    wanted = torch.log2(shares / total * levels).clamp(_LEAST, _MOST)
    found = wanted.floor().to(torch.int64)
    while (2**found).sum() > levels:  # channels of next to no range were given one bit
        found[found.argmax()] -= 1
    for channel in (wanted - found).argsort(descending=True, stable=True).tolist():
        fits = (2**found).sum() + 2 ** found[channel] <= levels
        if fits and found[channel] < wanted[channel]:
            found[channel] += 1
    return found


def uneven_affine(low: Tensor, high: Tensor, bits: Tensor) -> tuple[Affine, Tensor]:
    """Return the map of each channel on the widest's grid, and the greatest integer of each.

    Args:
        low: the lower ends, (channels,).
        high: the upper ends.
        bits: of each channel.
    """
    scale = torch.ones(len(bits))
    zero_point, last = torch.zeros(2, len(bits), dtype=torch.int32)
    for width in range(_LEAST, _MOST + 1):
        own, grid = bits == width, Grid.of(width, signed=False)
        affine = Affine.over(low[own], high[own], grid)
        scale[own], zero_point[own], last[own] = affine.scale, affine.zero_point, grid.quant_max
    return Affine(scale, zero_point, Grid(0, int(last.max()))), last
