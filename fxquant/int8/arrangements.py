"""Ways to compute one convolution: oneDNN's kernel, an equal call of it, and float32.

oneDNN's kernels never end, or are wrong, for a few kinds of geometry (`why_not_direct`). Written
plainly each of them is right:

    y(x, w, b; padding p, stride s, z) = y(x̃, w, b - s_x · s_w · z · Σ w; padding 0, stride s̃, 0)

x̃ is x with p times z on either side, of which an axis with one output position keeps the one window
that is read; there the stride s̃ is 1. The rules come from `benchmarks.int8.geometry_sweep`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.int8 import kernels, onednn
from fxquant.int8.operands import Geometry, Result, Uint8, Weight

Arrangement = Callable[[Uint8, Weight, Geometry | None, str, Result, Uint8 | None], Tensor]
"""Computes a layer, of a linear one without a geometry, and adds the last operand."""

_ENDLESS_CHANNELS = 16
_ENDLESS_WIDTH = 10  # of kernels: 14 and more never end in oneDNN 3.7 and 3.13


class Shapes(NamedTuple):
    """What of a convolution's operands decides whether oneDNN computes it right."""

    x: tuple[int, ...]
    """(N, in, *positions)."""
    weight: tuple[int, ...]
    """(out, in/groups, *kernel)."""
    geometry: Geometry
    has_zero_point: bool
    """Of x: whether it is not 0."""

    def windows(self) -> tuple[int, ...]:
        """Return how many positions of the input a window spans, one number a dimension."""
        spans = zip(self.geometry.dilation, self.weight[2:], strict=True)
        return tuple(dilation * (width - 1) + 1 for dilation, width in spans)

    def outputs(self) -> tuple[int, ...]:
        """Return the positions of the result, one number a dimension."""
        geometry = self.geometry
        sizes = zip(self.x[2:], geometry.padding, self.windows(), geometry.stride, strict=True)
        return tuple(
            (size + 2 * padding - window) // stride + 1 for size, padding, window, stride in sizes
        )


def why_not_direct(shapes: Shapes) -> str | None:
    """Return why oneDNN's kernel must not be called as it is, or None if nothing is known.

    >>> shapes = Shapes((1, 1, 8, 80), (16, 1, 3, 80), Geometry((1, 2), (0, 0), (1, 1), 1), False)
    >>> why_not_direct(shapes)
    'one channel a group, a stride along the width and one column of results'
    """
    geometry, (outputs, channels, *kernel) = shapes.geometry, shapes.weight
    is_depthwise = channels == 1 and outputs == geometry.groups > 1
    if shapes.has_zero_point:
        if is_depthwise and outputs == _ENDLESS_CHANNELS and kernel[-1] >= _ENDLESS_WIDTH:
            return f"{_ENDLESS_CHANNELS} channels, each with a wide kernel of its own"
        if any(map(_sees_padding_alone, *_axes(shapes))):
            return "a window that sees nothing but padding"
    if channels > 1 or is_depthwise or geometry.dilation[-1] > 1:
        return None
    # Here oneDNN first copies, for each window, what it reads of a row.
    if geometry.stride[-1] > 1 and shapes.outputs()[-1] == 1:
        return "one channel a group, a stride along the width and one column of results"
    if len(kernel) == 3 and kernel[0] > 1 and shapes.x[2] == 1:
        return "one channel a group and a deep kernel over one plane"
    return None


def _axes(shapes: Shapes) -> tuple[tuple[int, ...], ...]:
    geometry = shapes.geometry
    return (
        *(shapes.x[2:], shapes.outputs(), shapes.weight[2:]),
        *(geometry.stride, geometry.padding, geometry.dilation),
    )


def _sees_padding_alone(
    size: int, outputs: int, width: int, stride: int, padding: int, dilation: int
) -> bool:
    """Say whether a window along one axis reads no position of the input."""
    last = (outputs - 1) * stride - padding
    if last >= size:
        return True
    for start in range(-padding, min(last + 1, 0), stride):
        tap = -(start // dilation)  # the first that is not before the input
        if tap >= width or start + tap * dilation >= size:
            return True
    return False


def direct(
    x: Uint8,
    weight: Weight,
    geometry: Geometry | None,
    activation: str,
    result: Result,
    other: Uint8 | None,
) -> Tensor:
    """Return what oneDNN's kernel computes; `other`, to be added, may be overwritten."""
    if geometry is None:
        return onednn.linear(x, weight, activation, result)
    if other is None:
        return onednn.conv(x, weight, geometry, activation, result)
    return onednn.conv_add(x, weight, geometry, other, result)


def plain(
    x: Uint8,
    weight: Weight,
    geometry: Geometry | None,
    activation: str,
    result: Result,
    other: Uint8 | None,
) -> Tensor:
    """Return what oneDNN's kernel computes without padding, zero-point and needless strides."""
    assert geometry is not None
    shapes = Shapes(tuple(x.values.shape), tuple(weight.integers.shape), geometry, False)
    values, strides = x.values, list(geometry.stride)
    if any(geometry.padding):
        sides = [side for each in reversed(geometry.padding) for side in (each, each)]
        values = F.pad(values, sides, value=x.zero_point)
    for axis, (window, outputs) in enumerate(zip(shapes.windows(), shapes.outputs(), strict=True)):
        if outputs == 1:
            values, strides[axis] = values.narrow(2 + axis, 0, window), 1
    unpadded = geometry._replace(stride=tuple(strides), padding=(0,) * len(strides))
    shifted = weight._replace(bias=_shifted_bias(x, weight))
    return direct(Uint8(values, x.scale, 0), shifted, unpadded, activation, result, other)


def _shifted_bias(x: Uint8, weight: Weight) -> Tensor | None:
    """Return the bias that makes up for the zero-point."""
    if x.zero_point == 0:
        return weight.bias
    sums = weight.integers.flatten(1).sum(1, dtype=torch.int32).to(torch.float32)
    shift = sums * weight.scale * (-x.scale * x.zero_point)
    return shift if weight.bias is None else weight.bias + shift


def in_float(
    x: Uint8,
    weight: Weight,
    geometry: Geometry | None,
    activation: str,
    result: Result,
    other: Uint8 | None,
) -> Tensor:
    """Return what the simulation computes; without a geometry of a linear layer.

    The sums of products are exact up to 2²⁴, as in the simulation.
    """
    dims = 0 if geometry is None else len(geometry.stride)
    with torch.autocast("cpu", enabled=False):
        values, integers = kernels.widen(x.values, x.zero_point), weight.integers.float()
        if geometry is None:
            y = F.linear(values, integers.flatten(1))
        else:
            y = _CONVOLUTIONS[dims](values, integers, None, *geometry)
    y = y.mul_((weight.scale * x.scale).reshape(-1, *[1] * dims))
    if weight.bias is not None:
        y = y.add_(weight.bias.reshape(-1, *[1] * dims))
    if other is not None:
        y = y.add_(kernels.dequantize(*other))
    y = _ACTIVATIONS[activation](y)
    if geometry is not None:
        y = y.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last, as oneDNN's results
    return as_result(y, result)


def as_result(y: Tensor, result: Result) -> Tensor:
    """Return real values, which may be written to, as a layer's result."""
    if result.scale is None:
        is_bounded = result.low > -math.inf or result.high < math.inf
        return y.clamp_(result.low, result.high) if is_bounded else y
    return kernels.narrow(y, 1 / result.scale, *result[1:])


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "swish": F.silu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
}
