"""What stands between the layers, as primitives: to integers and back, sums, averages, windows."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_void_p

import torch
from torch import Tensor

from fxquant.int8 import Result
from fxquant.numerics import AffineNumbers
from fxquant.programs.library import Axes, library
from fxquant.programs.primitives import (
    MANY,
    OTHER,
    RESULT,
    SCALES,
    SOURCE,
    WEIGHT,
    ZERO_POINTS,
    Attributes,
    Description,
    Layout,
    Primitive,
)

_INFERENCE, _MAX, _AVERAGE = 96, 0x1FF, 0x2FF  # dnnl_forward_inference, dnnl_pooling_…
_ADD, _LINEAR, _CLIP = 0x1FFF0, 0x26, 0x2E  # dnnl_binary_add, dnnl_eltwise_…


def rounding(x: Tensor, y: Tensor, scale: float, zero_point: int) -> Primitive:
    """Return what rounds float32 to uint8, in the layout of `y`: y = round(x · (1 / scale)) + z."""
    attributes = Attributes()
    attributes.scale(SOURCE)  # as the graph does: not a division by the result's
    operands = {SCALES | SOURCE: torch.tensor([1 / scale], dtype=torch.float32)}
    if zero_point:
        attributes.shift(RESULT)
        operands[ZERO_POINTS | RESULT] = torch.tensor([zero_point], dtype=torch.int32)
    return _reorder(x, y, attributes, operands)


def widening(x: Tensor, y: Tensor, scale: float, zero_point: int) -> Primitive:
    """Return what makes float32 of uint8: y = scale · (x - z)."""
    attributes = Attributes()
    attributes.scale(SOURCE)
    operands = {SCALES | SOURCE: torch.tensor([scale], dtype=torch.float32)}
    if zero_point:
        attributes.shift(SOURCE)
        operands[ZERO_POINTS | SOURCE] = torch.tensor([zero_point], dtype=torch.int32)
    return _reorder(x, y, attributes, operands)


def requantizing(
    x: Tensor, y: Tensor, x_scale: float, x_zero_point: int, scale: float, zero_point: int
) -> Primitive:
    """Return what makes integers of other integers: y = round(x_scale / scale · (x - x_z)) + z."""
    attributes = Attributes()
    attributes.scale(SOURCE)
    operands = {SCALES | SOURCE: torch.tensor([x_scale / scale], dtype=torch.float32)}
    for operand, number in ((SOURCE, x_zero_point), (RESULT, zero_point)):
        if number:
            attributes.shift(operand)
            operands[ZERO_POINTS | operand] = torch.tensor([number], dtype=torch.int32)
    return _reorder(x, y, attributes, operands)


def copying(x: Tensor, y: Tensor) -> Primitive:
    """Return what copies `x` into `y`, of whatever layouts."""
    return _reorder(x, y, Attributes(), {})


def adding(
    a: Tensor, b: Tensor, y: Tensor, first: AffineNumbers, second: AffineNumbers, result: Result
) -> Primitive:
    """Return what adds integers: y = clamp(round((x̂_a + x̂_b) / s) + z).

    With real values s_a · a + s_b · b - c, where c = s_a · z_a + s_b · z_b, and all of one layout.
    """
    assert result.scale is not None
    attributes = Attributes()
    constant = first.scale * first.zero_point + second.scale * second.zero_point
    steps = [("eltwise", _LINEAR, 1 / result.scale, result.zero_point - constant / result.scale)]
    if result.low > 0 or result.high < 255:
        steps.append(("eltwise", _CLIP, float(result.low), float(result.high)))
    attributes.append(*steps)
    operands = {SOURCE: a, OTHER: b, RESULT: y}
    for operand, numbers in ((SOURCE, first), (OTHER, second)):
        attributes.scale(operand)
        operands[SCALES | operand] = torch.tensor([numbers.scale], dtype=torch.float32)
    layouts = (Layout.of(a), Layout.of(b), Layout.of(y))
    return Primitive(Description("binary", library().engine, _ADD, *layouts, attributes), operands)


def concatenating(parts: Sequence[Tensor], y: Tensor, dim: int) -> Primitive:
    """Return what lays tensors side by side."""
    layouts = [Layout.of(each) for each in parts]
    handles = (c_void_p * len(parts))(*(each.handle.value for each in layouts))
    sizes = (library().engine, Layout.of(y), len(parts), dim, handles, Attributes())
    operands = {MANY + number: part for number, part in enumerate(parts)}
    return Primitive(Description("concat", *sizes), {**operands, RESULT: y})


def float_average(x: Tensor, y: Tensor) -> Primitive:
    """Return what averages floats over all positions.

    Args:
        x: (N, C, H, W), channels last.
        y: N · C values in their order.
    """
    source = Layout.channels_last(x)
    result = Layout.strided((*x.shape[:2], 1, 1), (x.shape[1], 1, x.shape[1], x.shape[1]), x.dtype)
    window = Axes(*x.shape[2:])
    description = Description(
        "pooling_forward",
        *(library().engine, _INFERENCE, _AVERAGE, source, result),
        *(window, window, Axes(0, 0), Axes(0, 0), Axes(0, 0), Attributes()),
    )
    return Primitive(description, {SOURCE: (x, source), RESULT: (y, result)})


def _reorder(
    x: Tensor, y: Tensor, attributes: Attributes, operands: dict[int, Tensor]
) -> Primitive:
    engine = library().engine
    layouts = (Layout.of(x), engine, Layout.of(y), engine)
    description = Description("reorder", *layouts, attributes)
    return Primitive(description, {SOURCE: x, RESULT: y, **operands})


def average(x: Tensor, y: Tensor, zero_point: int, factor: float, shift: int) -> Primitive:
    """Return what averages integers over all positions: a product with ones, exact in int32.

    y = round(factor · Σ (x - zero_point)) + shift

    Args:
        x: (N, C, *positions), channels last.
        y: N · C values in their order.
        zero_point: of x.
        factor: s_x / s_y over the number of positions.
        shift: zero-point of y.
    """
    values, result = x.flatten(2), y.view(*x.shape[:2], 1)
    ones = torch.ones(x.shape[0], values.shape[2], 1, dtype=torch.int8)
    attributes = Attributes()
    attributes.scale(SOURCE)
    operands = {
        SOURCE: values,
        WEIGHT: ones,
        RESULT: result,
        SCALES | SOURCE: torch.tensor([factor], dtype=torch.float32),
    }
    for operand, number in ((SOURCE, zero_point), (RESULT, shift)):
        if number:
            attributes.shift(operand)
            operands[ZERO_POINTS | operand] = torch.tensor([number], dtype=torch.int32)
    layouts = (Layout.of(values), Layout.of(ones), None, Layout.of(result))
    return Primitive(Description("matmul", library().engine, *layouts, attributes), operands)


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
