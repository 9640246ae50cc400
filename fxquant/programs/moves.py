"""What stands between the layers, as primitives.

To integers and back, sums, averages, windows; in float32 layer norms and attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_void_p
from typing import Any

import torch
from torch import Tensor

from fxquant.int8 import Result
from fxquant.programs.library import Axes, library
from fxquant.programs.primitives import (
    MANY,
    OTHER,
    RESULT,
    SCALE,
    SCALES,
    SHIFT,
    SOURCE,
    STEP,
    WEIGHT,
    ZERO_POINTS,
    Attributes,
    Description,
    Layout,
    Primitive,
)

_INFERENCE, _MAX = 96, 0x1FF  # dnnl_forward_inference, dnnl_pooling_max
_ADD, _MULTIPLY = 0x1FFF0, 0x1FFF1  # dnnl_binary_…
_USE_SCALE, _USE_SHIFT = 2, 4  # dnnl_use_…
_SOFTMAX = 0x30000  # dnnl_softmax_accurate
_LINEAR, _CLIP, _ROUND = 0x26, 0x2E, 0x32  # dnnl_eltwise_…
_Step = tuple[str, int, float, float]


def rounding(x: Tensor, y: Tensor, scale: float, zero_point: int, y_max: int) -> Primitive:
    """Return what rounds float32 to uint8: y = clamp(round(x · (1 / scale)) + z, 0, y_max).

    By the graph's own steps, each of which rounds as there: so bits are the same. `y` has the
    layout of `x`.
    """
    return _elementwise(x, 1 / scale, y, _MULTIPLY, _to_integers(zero_point, 0, y_max))


def widening(x: Tensor, y: Tensor, scale: float, zero_point: int) -> Primitive:
    """Return what makes float32 of uint8, of whatever layouts: y = scale · (x - z)."""
    attributes = Attributes()
    attributes.scale(SOURCE)
    operands = {SCALES | SOURCE: torch.tensor([scale], dtype=torch.float32)}
    if zero_point:
        attributes.shift(SOURCE)
        operands[ZERO_POINTS | SOURCE] = torch.tensor([zero_point], dtype=torch.int32)
    return _reorder(x, y, attributes, operands)


def copying(x: Tensor, y: Tensor) -> Primitive:
    """Return what copies `x` into `y`, of whatever layouts."""
    return _reorder(x, y, Attributes(), {})


def _reorder(
    x: Tensor, y: Tensor, attributes: Attributes, operands: dict[int, Tensor]
) -> Primitive:
    engine = library().engine
    layouts = (Layout.of(x), engine, Layout.of(y), engine)
    description = Description("reorder", *layouts, attributes)
    return Primitive(description, {SOURCE: x, RESULT: y, **operands})


def adding(a: Tensor, b: Tensor, y: Tensor, result: Result) -> Primitive:
    """Return what makes integers of a sum: y = clamp(round((a + b) · (1 / s)) + z).

    Args:
        a: float32.
        b: the same, of the same layout.
        y: uint8, of that layout too.
        result: s, z, and the bounds.
    """
    assert result.scale is not None
    ends = _to_integers(result.zero_point, result.low, result.high)
    return _elementwise(a, b, y, _ADD, [_times(1 / result.scale), *ends])


def _elementwise(
    x: Tensor, other: Tensor | float, y: Tensor, kind: int, steps: Sequence[_Step]
) -> Primitive:
    """Return what combines `x`, in float32, with a tensor or a number, and then does the steps."""
    x, y = _in_a_row(x), _in_a_row(y)
    if isinstance(other, Tensor):
        other = _in_a_row(other)
    else:
        other = torch.full((1, 1), other, dtype=torch.float32)
    attributes = Attributes()
    attributes.append(*steps)
    layouts = (Layout.of(x), Layout.of(other), Layout.of(y))
    description = Description("binary", library().engine, kind, *layouts, attributes)
    return Primitive(description, {SOURCE: x, OTHER: other, RESULT: y})


def _in_a_row(x: Tensor) -> Tensor:
    """Return the values of a tensor without gaps in the order in which they lie in memory."""
    return x.as_strided((1, x.numel()), (x.numel(), 1))


def _times(factor: float) -> _Step:
    return ("eltwise", _LINEAR, factor, 0.0)


def _to_integers(zero_point: int, low: float, high: float) -> list[_Step]:
    """Return the steps that round, add a zero-point, and hold what uint8 itself does not."""
    steps: list[_Step] = [("eltwise", _ROUND, 0.0, 0.0), ("eltwise", _LINEAR, 1.0, zero_point)]
    if low > 0 or high < 255:
        steps.append(("eltwise", _CLIP, float(low), float(high)))
    return steps


def summing(x: Tensor, y: Tensor, zero_point: int) -> Primitive:
    """Return what sums integers over all positions, exactly: a product with ones.

    y = Σ (x - zero_point)

    Args:
        x: (N, C, *positions), channels last.
        y: float32, N · C values in their order.
        zero_point: of x.
    """
    values, result = x.flatten(2), y.view(*x.shape[:2], 1)
    ones = torch.ones(x.shape[0], values.shape[2], 1, dtype=torch.int8)
    attributes = Attributes()
    operands = {SOURCE: values, WEIGHT: ones, RESULT: result}
    if zero_point:
        attributes.shift(SOURCE)
        operands[ZERO_POINTS | SOURCE] = torch.tensor([zero_point], dtype=torch.int32)
    layouts = (Layout.of(values), Layout.of(ones), None, Layout.of(result))
    return Primitive(Description("matmul", library().engine, *layouts, attributes), operands)


def narrowing(x: Tensor, y: Tensor, factor: float, zero_point: int, y_max: int) -> Primitive:
    """Return what makes integers of sums: y = clamp(round(x · factor) + z, 0, y_max)."""
    return _elementwise(x, factor, y, _MULTIPLY, _to_integers(zero_point, 0, y_max))


def concatenating(parts: Sequence[Tensor], y: Tensor, dim: int) -> Primitive:
    """Return what lays tensors side by side."""
    layouts = [Layout.of(each) for each in parts]
    handles = (c_void_p * len(parts))(*(each.handle.value for each in layouts))
    sizes = (library().engine, Layout.of(y), len(parts), dim, handles, Attributes())
    operands = {MANY + number: part for number, part in enumerate(parts)}
    return Primitive(Description("concat", *sizes), {**operands, RESULT: y})


def max_pool2d(
    x: Tensor,
    y: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Primitive:
    """Return what takes the greatest integer of each window; x (N, C, H, W), channels last."""
    sizes = zip(x.shape[2:], y.shape[2:], size, stride, padding, dilation, strict=True)
    behind = [
        max((outputs - 1) * step + (width - 1) * apart + 1 - length - before, 0)
        for length, outputs, width, step, before, apart in sizes
    ]  # with `ceil_mode` a window may end behind the padding
    source, result = Layout.channels_last(x), Layout.channels_last(y)
    description = Description(
        "pooling_forward",
        *(library().engine, _INFERENCE, _MAX, source, result),
        *(Axes(*stride), Axes(*size), Axes(*(each - 1 for each in dilation))),
        *(Axes(*padding), Axes(*behind), Attributes()),
    )
    return Primitive(description, {SOURCE: (x, source), RESULT: (y, result)})


def normalizing(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Primitive:
    """Return a layer norm over the last axis of contiguous float32 tensors."""
    layouts = (Layout.of(x), Layout.of(y), None)
    sizes = (library().engine, _INFERENCE, *layouts, eps, _USE_SCALE | _USE_SHIFT, Attributes())
    description = Description("layer_normalization_forward", *sizes)
    return Primitive(description, {SOURCE: x, RESULT: y, SCALE: weight, SHIFT: bias})


def multiplying(
    a: Tensor, b: Tensor, y: Tensor, factor: float = 1.0, added: Tensor | None = None
) -> Primitive:
    """Return products of float32 matrices, times a factor, and something added that broadcasts.

    All have the same axes before the matrices'.
    """
    attributes, steps = Attributes(), list[tuple[Any, ...]]()
    operands = {SOURCE: a, WEIGHT: b, RESULT: y}
    if factor != 1.0:
        steps.append(_times(factor))
    if added is not None:
        operands[STEP * (len(steps) + 1) | OTHER] = added
        layout = Layout.of(added)
        steps.append(("binary", _ADD, layout.handle))
    attributes.append(*steps)
    layouts = (Layout.of(a), Layout.of(b), None, Layout.of(y))
    return Primitive(Description("matmul", library().engine, *layouts, attributes), operands)


def softmax(x: Tensor) -> Primitive:
    """Return the softmax over the last axis of a contiguous float32 tensor, in its place."""
    layout = Layout.of(x)
    sizes = (library().engine, _INFERENCE, _SOFTMAX, layout, layout, x.dim() - 1, Attributes())
    return Primitive(Description("softmax_forward", *sizes), {SOURCE: x, RESULT: x})
