"""Uniform affine quantization: Eqs. (1)-(8) of the report, on any integer grid.

    q = clamp(round(x/s) + z, quant_min, quant_max)        (1)
    s = (α - β) / (quant_max - quant_min)                  (2)
    z = quant_min - round(β/s)                             (3)
    x̂ = s (q - z)                                          (4), (5)

[β, α] is first widened to hold 0, so that z is on the grid and real zero is exact. The symmetric
case (6)-(8) fixes z = 0. `round` takes ties to even, as PyTorch's and oneDNN's kernels do.
"""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True, eq=False)
class Affine:
    """What the integers q of a tensor stand for: x̂ = scale · (q - zero_point), q on `grid`.

    `scale` and `zero_point` have one shape, which broadcasts against the tensor: () for one set, or
    one set for each channel, row or range. What `over` makes keeps to this:

    * `scale` is float32 and above zero, its inverse finite; 1 where a range has no width, so that a
      tensor of zeros stays exactly zero;
    * `zero_point` is int32 and on the grid, so that real zero is exact; 0 where symmetric;
    * a value within the range moves by half a step at most, one outside goes to the nearer end.

    >>> affine = Affine.over(torch.tensor(-1.0), torch.tensor(3.0), Grid(0, 4))
    >>> affine.numbers()
    AffineNumbers(scale=1.0, zero_point=1, grid=Grid(quant_min=0, quant_max=4))
    >>> affine.round(torch.tensor([-7.0, 0.4, 2.6]))
    tensor([-1.,  0.,  3.])
    """

    scale: Tensor
    zero_point: Tensor
    grid: Grid

    @classmethod
    def over(cls, low: Tensor, high: Tensor, grid: Grid, *, symmetric: bool = False) -> Affine:
        """Return the map that spreads `grid` over [low, high], widened to hold 0: Eqs. (2), (3).

        Args:
            low: the lower ends β, any shape, in the units of the tensor.
            high: the upper ends α, of the same shape.
            grid: the integers to use.
            symmetric: fix the zero-point at 0. On an unsigned grid negative values are clipped.
        """
        low = low.to(torch.float64).clamp(max=0)  # float64: high - low must not overflow
        high = high.to(torch.float64).clamp(min=0)
        if symmetric:
            scale = high / grid.quant_max
            if grid.quant_min < 0:
                scale = torch.maximum(scale, low / grid.quant_min)
            scale = _usable(scale)
            return cls(scale, torch.zeros_like(scale, dtype=torch.int32), grid)
        scale = _usable((high - low) / grid.steps)
        zero_point = grid.quant_min - torch.round(low / scale.to(torch.float64))
        zero_point = zero_point.clamp(grid.quant_min, grid.quant_max).to(torch.int32)
        return cls(scale, zero_point, grid)

    def check(self, *shapes: tuple[int, ...]) -> None:
        """Raise `ValueError` if one of the promises above is broken, or the shape none of these.

        Args:
            shapes: that both tensors may have; with none, any.
        """
        scale, zero_point, grid = self.scale, self.zero_point, self.grid
        shape = tuple(scale.shape)
        if shape != tuple(zero_point.shape) or (shapes and shape not in shapes):
            raise ValueError(
                f"scales of shape {shape} and zero-points of {tuple(zero_point.shape)}, where "
                f"{' or '.join(map(str, shapes))} is right"
            )
        if not 0 < grid.steps < 2**16:
            raise ValueError(f"{grid} is no grid of 2 to 16 bits")
        if scale.is_meta:
            return
        if scale.dtype != torch.float32 or not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError(f"scales of {scale.dtype} that are not all positive and finite")
        is_inside = (zero_point >= grid.quant_min) & (zero_point <= grid.quant_max)
        if zero_point.dtype != torch.int32 or not bool(is_inside.all()):
            raise ValueError(f"zero-points of {zero_point.dtype} that are not all on {grid}")

    def quantize(self, x: Tensor) -> Tensor:
        """Return the integers of Eq. (1), in `x`'s floating dtype."""
        q = torch.round(x / self.scale).add_(self.zero_point)
        return q.clamp_(self.grid.quant_min, self.grid.quant_max)

    def dequantize(self, q: Tensor) -> Tensor:
        """Return the real values of Eq. (4)."""
        return (q - self.zero_point) * self.scale

    def round(self, x: Tensor) -> Tensor:
        """Return x̂, the values of the grid nearest to `x`: Eq. (5)."""
        return self.dequantize(self.quantize(x))

    def error(self, x: Tensor) -> Tensor:
        """Return x̂ - x, in the shape of all three broadcast."""
        return self.round(x).sub_(x)

    @property
    def lowest(self) -> Tensor:
        """The least integer minus the zero-point, in the scale's dtype: steps from real zero."""
        return (self.grid.quant_min - self.zero_point).to(self.scale.dtype)

    @property
    def highest(self) -> Tensor:
        """The greatest integer minus the zero-point."""
        return (self.grid.quant_max - self.zero_point).to(self.scale.dtype)

    def unsigned(self) -> Affine:
        """Return the same map on a grid that starts at 0."""
        grid = Grid(0, self.grid.steps)
        return Affine(self.scale, self.zero_point - self.grid.quant_min, grid)

    def map(self, function: Callable[[Tensor], Tensor]) -> Affine:
        """Return the map with `function` applied to both tensors: to reshape or move them."""
        return Affine(function(self.scale), function(self.zero_point), self.grid)

    def along(self, axis: int | None, rank: int) -> Affine:
        """Return the sets of channels, (channels,), along an axis: see `along_axis`."""
        return self.map(lambda values: along_axis(values, axis, rank))

    def numbers(self) -> AffineNumbers:
        """Return the one set for all channels, in plain numbers."""
        return AffineNumbers(self.scale.item(), int(self.zero_point.item()), self.grid)


@stored_as("AffineNumbers")
@dataclass(frozen=True)
class AffineNumbers:
    """An `Affine` of one set, as kernels take it, files hold it and `==` compares it."""

    scale: float
    zero_point: int
    grid: Grid

    def check_stored(self) -> None:
        """Raise `ValueError` if a file holds numbers that are no map."""
        zero_point = torch.tensor(self.zero_point, dtype=torch.int32)
        Affine(torch.tensor(self.scale, dtype=torch.float32), zero_point, self.grid).check(())


def _usable(scale: Tensor) -> Tensor:
    """Return `scale` in float32, with its inverse finite, and 1 where it is 0."""
    bounded = scale.clamp(_TINY, torch.finfo(torch.float32).max)
    return torch.where(scale == 0, 1.0, bounded).to(torch.float32)


def along_axis(values: Tensor, axis: int | None, rank: int) -> Tensor:
    """Return `values`, (channels,), shaped to lie along one axis of a tensor of `rank` axes.

    One value for all, where `axis` is None, gets `rank` axes of 1.

    >>> along_axis(torch.ones(3), -2, 4).shape
    torch.Size([1, 1, 3, 1])
    """
    shape = [1] * rank
    if axis is not None:
        shape[axis] = -1
    return values.reshape(shape)


def activation_grid(low: float, spec: TensorSpec) -> Grid:
    """Return the integers for an activation whose range starts at `low`.

    Signed where the spec says so, or a symmetric quantizer has negative values to hold (Eqs. 7, 8).
    """
    return Grid.of(spec.bits, signed=spec.signed or (spec.symmetric and low < 0))
