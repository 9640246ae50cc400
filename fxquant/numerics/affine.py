"""Uniform affine quantization: Eqs. (1)-(8) of the report, on any integer grid.

    q = clamp(round(x/s) + z, quant_min, quant_max)        (1)
    s = (α - β) / (quant_max - quant_min)                  (2)
    z = quant_min - round(β/s)                             (3)
    x̂ = s (q - z)                                          (4), (5)

[β, α] is first widened to hold 0, so that z is on the grid and real zero is exact. The symmetric
case (6)-(8) fixes z = 0. `round` takes ties to even, as PyTorch's and oneDNN's kernels do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.recipe.spec import TensorSpec
from fxquant.stored_names import stored_as

_TINY = torch.finfo(torch.float32).tiny


@stored_as("Grid")
@dataclass(frozen=True)
class Grid:
    """The integers that a quantized value may take: quant_min to quant_max.

    >>> Grid.of(8, signed=True)
    Grid(quant_min=-128, quant_max=127)
    """

    quant_min: int
    quant_max: int

    @classmethod
    def of(cls, bits: int, *, signed: bool) -> Grid:
        """Return the grid of that many bits: two's complement if `signed`."""
        return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else cls(0, 2**bits - 1)

    @property
    def steps(self) -> int:
        """The number of steps between the ends."""
        return self.quant_max - self.quant_min


@stored_as("Affine")
@dataclass(frozen=True)
class Affine:
    """What a tensor's integers stand for, in plain numbers: x̂ = scale · (q - zero_point).

    >>> Affine(0.5, -3, Grid(-128, 127)).unsigned()
    Affine(scale=0.5, zero_point=125, grid=Grid(quant_min=0, quant_max=255))
    """

    scale: float
    zero_point: int
    grid: Grid

    def unsigned(self) -> Affine:
        """Return the same map on a grid that starts at 0."""
        shift = -self.grid.quant_min
        return Affine(self.scale, self.zero_point + shift, Grid(0, self.grid.steps))


def affine_parameters(
    low: Tensor, high: Tensor, grid: Grid, *, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the scale (float32) and zero-point (int32) that spread `grid` over [low, high].

    Args:
        low: the lower ends β, any shape, in the units of the tensor.
        high: the upper ends α, of the same shape.
        grid: the integers to use.
        symmetric: fix the zero-point at 0. On an unsigned grid negative values are then clipped.

    A range of zero width at 0 gets the scale 1, so that an all-zero tensor stays exactly zero.

    >>> affine_parameters(torch.tensor(-1.0), torch.tensor(3.0), Grid(0, 4))
    (tensor(1.), tensor(1, dtype=torch.int32))
    """
    low = low.to(torch.float64).clamp(max=0)  # float64: high - low must not overflow
    high = high.to(torch.float64).clamp(min=0)
    if symmetric:
        scale = high / grid.quant_max
        if grid.quant_min < 0:
            scale = torch.maximum(scale, low / grid.quant_min)
        scale = _usable(scale)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = _usable((high - low) / grid.steps)
    zero_point = grid.quant_min - torch.round(low / scale.to(torch.float64))
    return scale, zero_point.clamp(grid.quant_min, grid.quant_max).to(torch.int32)


def _usable(scale: Tensor) -> Tensor:
    """Return `scale` in float32, with its inverse finite, and 1 where it is 0."""
    bounded = scale.clamp(_TINY, torch.finfo(torch.float32).max)
    return torch.where(scale == 0, 1.0, bounded).to(torch.float32)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Return the integers of Eq. (1), in `x`'s floating dtype.

    `scale` and `zero_point` broadcast against `x`.
    """
    return torch.round(x / scale).add_(zero_point).clamp_(grid.quant_min, grid.quant_max)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the real values of Eq. (4); the three arguments broadcast."""
    return (q - zero_point) * scale


def activation_grid(low: float, spec: TensorSpec) -> Grid:
    """Return the integers for an activation whose range starts at `low`.

    Signed only where a symmetric quantizer has negative values to hold (Eqs. 7 and 8).
    """
    return Grid.of(spec.bits, signed=spec.symmetric and low < 0)
