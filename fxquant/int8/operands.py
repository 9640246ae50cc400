"""What the kernels take: integers with what they stand for, and what a result is to be.

Records are tuples: a call makes some of them anew, at 0.3 µs each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.numerics.affine import AffineNumbers
from fxquant.stored_names import stored_as

Clamp = tuple[float, float] | None


class Uint8(NamedTuple):
    """A tensor of integers on a grid that starts at 0: x̂ = scale · (values - zero_point)."""

    values: Tensor
    """uint8, any shape."""
    scale: float
    zero_point: int

    @classmethod
    def of(cls, values: Tensor, integers: AffineNumbers) -> Uint8:
        """Return `values` with what they stand for."""
        return cls(values, integers.scale, integers.zero_point)


class Weight(NamedTuple):
    """A layer's weight, which stands for scale · integers, and its bias."""

    integers: Tensor
    """int8 (out, in/groups, *kernel), of linear layers (out, in)."""
    scale: Tensor
    """float32 (out,) or (1,)."""
    bias: Tensor | None
    """float32 (out,)."""


@stored_as("Int8Geometry")
class Geometry(NamedTuple):
    """Of a convolution: one number a dimension, and the groups of channels."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    """Zeros on either side."""
    dilation: tuple[int, ...]
    groups: int


@stored_as("Int8Result")
class Result(NamedTuple):
    """What a kernel's result stands for, and its bounds."""

    scale: float | None
    """None for a result in float32."""
    zero_point: int
    low: float
    """The least value of the result, in its own units."""
    high: float

    @classmethod
    def of(cls, output: AffineNumbers | None, clamp: Clamp = None) -> Result:
        """Return a result on the grid of `output`, None for float32, behind a ReLU's `clamp`.

        A ReLU before the rounding and a clamp behind it are the same: rounding keeps the order.

        >>> from fxquant.numerics.affine import Grid
        >>> Result.of(AffineNumbers(0.1, 3, Grid(0, 255)), (0.0, 6.0))
        Result(scale=0.1, zero_point=3, low=3, high=63)
        """
        low, high = clamp or (-math.inf, math.inf)
        if output is None:
            return cls(None, 0, low, high)
        return cls(output.scale, output.zero_point, _rounded(low, output), _rounded(high, output))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the result."""
        return torch.float32 if self.scale is None else torch.uint8


def _rounded(value: float, y: AffineNumbers) -> int:
    """Return the integer of one value, by the float32 arithmetic of `FakeQuantize`."""
    integer = torch.round(torch.tensor(value) * (1 / y.scale)) + y.zero_point
    return int(integer.clamp(y.grid.quant_min, y.grid.quant_max).item())
