"""Convolutions and linear layers on integers, as primitives.

A 1×1 convolution is a product of a matrix and the weight, too; which of the two is sooner done
depends on shape, threads and processor, and is found by a race of a few calls.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fxquant.int8 import Int8Conv, Int8Layer, Result, Shapes, why_not_direct
from fxquant.programs.library import Axes, library
from fxquant.programs.primitives import (
    BIAS,
    RESULT,
    SCALES,
    SOURCE,
    WEIGHT,
    ZERO_POINTS,
    Attributes,
    Description,
    Layout,
    Primitive,
    is_channels_last,
    packed,
)

_INFERENCE, _DIRECT, _UINT8 = 96, 1, 6  # dnnl_forward_inference, dnnl_convolution_direct, dnnl_u8
_ROUNDS = 5  # of a race: each call takes 10 µs to some milliseconds
_ELTWISE = {
    "tanh": (0x21, 0.0, 0.0),
    "gelu_tanh": (0x2B, 0.0, 0.0),
    "swish": (0x2C, 1.0, 0.0),
    "gelu": (0x31, 0.0, 0.0),
    "hardswish": (0x34, 1 / 6, 1 / 2),
}
"""dnnl_eltwise_…, α and β."""
_CLIP = 0x2E
_MOST = torch.finfo(torch.float32).max


def why_not(layer: Int8Layer, x: Tensor, y: Tensor) -> str | None:
    """Return why no primitive computes `layer`, given its input and its result; None if one does.

    What is known to be wrong is left to `fxquant.int8`, which arranges it otherwise.
    """
    if x.numel() == 0 or x.dtype != torch.uint8:
        return "its input is empty, or no uint8"
    if not isinstance(layer, Int8Conv):
        return None if x.is_contiguous() and y.is_contiguous() else "its rows are not contiguous"
    if x.dim() != len(layer.stride) + 2:
        return "its input has no batch"
    if not (is_channels_last(x) and is_channels_last(y)):
        return "its channels are not last in memory"
    has_zero_point = layer.input.zero_point != 0
    weight = tuple(layer.weight_integers.shape)
    return why_not_direct(Shapes(tuple(x.shape), weight, layer.geometry, has_zero_point))


def ways(layer: Int8Layer, x: Tensor, y: Tensor, adds: bool) -> Iterator[Primitive]:
    """Yield the primitives that compute `layer`.

    Args:
        layer: with any geometry, activation function and clamp.
        x: its input, which a primitive reads whenever it runs.
        y: its result, which it writes.
        adds: what is there before is added.

    Raises:
        Refused: oneDNN has no such primitive.
    """
    if not isinstance(layer, Int8Conv):
        yield _product(layer, x.flatten(0, -2), y.flatten(0, -2), adds)
        return
    yield _convolution(layer, x, y, adds)
    is_matrix = set(layer.kernel_size) == {1} and layer.groups == 1
    if is_matrix and not any(layer.padding) and set(layer.stride) == {1}:
        rows, results = (each.movedim(1, -1).flatten(0, -2) for each in (x, y))
        yield _product(layer, rows, results, adds)


def fastest(ways: Sequence[Primitive]) -> Primitive:
    """Return the primitive that ran soonest, by the best of some runs each."""
    if len(ways) == 1:
        return ways[0]
    seconds = dict.fromkeys(ways, math.inf)
    for _ in range(_ROUNDS):
        for way in ways:
            start = time.perf_counter()
            way.run()
            seconds[way] = min(seconds[way], time.perf_counter() - start)
    return min(ways, key=seconds.__getitem__)


def _product(layer: Int8Layer, x: Tensor, y: Tensor, adds: bool) -> Primitive:
    """Return rows of `x` times the weight, into rows of `y`."""
    weight = layer.weight_integers.flatten(1).t()
    bias = None if layer.bias is None else layer.bias[None]
    description = Description(
        "matmul",
        *(library().engine, Layout.of(x), Layout.free(weight.shape, torch.int8)),
        *(bias if bias is None else Layout.of(bias), Layout.of(y), _attributes(layer, adds, 2)),
    )
    return _bound(description, layer, (x, Layout.of(x)), weight, bias, (y, Layout.of(y)))


def _convolution(layer: Int8Conv, x: Tensor, y: Tensor, adds: bool) -> Primitive:
    """Return a convolution of `x` into `y`."""
    weight, bias, outputs = layer.weight_integers, layer.bias, 1
    if layer.groups > 1:
        weight, outputs = weight.reshape(layer.groups, -1, *weight.shape[1:]), 3
    source, result = Layout.channels_last(x), Layout.channels_last(y)
    description = Description(
        "convolution_forward",
        *(library().engine, _INFERENCE, _DIRECT),
        *(source, Layout.free(weight.shape, torch.int8)),
        *(bias if bias is None else Layout.of(bias), result),
        *(Axes(*layer.stride), Axes(*(each - 1 for each in layer.dilation))),
        *(Axes(*layer.padding), Axes(*layer.padding), _attributes(layer, adds, outputs)),
    )
    return _bound(description, layer, (x, source), weight, bias, (y, result))


def _attributes(layer: Int8Layer, adds: bool, outputs: int) -> Attributes:
    """Return scales, zero-points and what is behind the sums of products.

    Args:
        layer: what is computed.
        adds: what the result holds before is added.
        outputs: the weight's axes of outputs, as bits.
    """
    attributes, result = Attributes(), layer.result
    attributes.scale(SOURCE)
    attributes.scale(WEIGHT, outputs if layer.weight_scale.numel() > 1 else 0)
    if layer.input.zero_point:
        attributes.shift(SOURCE)
    if result.scale is not None:
        attributes.scale(RESULT)
        if result.zero_point:
            attributes.shift(RESULT)
    steps: list[tuple[Any, ...]] = []
    if adds:
        assert layer.other is not None
        steps.append(("sum", layer.other.scale, layer.other.zero_point, _UINT8))
    if layer.activation != "none":
        steps.append(("eltwise", *_ELTWISE[layer.activation]))
    bounds = _bounds(result)
    if bounds is not None:
        steps.append(("eltwise", _CLIP, *bounds))
    attributes.append(*steps)
    return attributes


def _bounds(result: Result) -> tuple[float, float] | None:
    """Return the least and the greatest real value of a result, where its type does not say it."""
    low, high = result.low, result.high
    if result.scale is None:
        return (
            None if (low, high) == (-math.inf, math.inf) else (max(low, -_MOST), min(high, _MOST))
        )
    if low <= 0 and high >= 255:
        return None
    return (low - result.zero_point) * result.scale, (high - result.zero_point) * result.scale


def _bound(
    description: Description,
    layer: Int8Layer,
    x: tuple[Tensor, Layout],
    weight: Tensor,
    bias: Tensor | None,
    y: tuple[Tensor, Layout],
) -> Primitive:
    """Return the primitive with its operands: scales and bias are read anew at each run."""
    layout = description.weight_layout()
    operands: dict[int, Tensor | tuple[Tensor, Layout]] = {
        SOURCE: x,
        WEIGHT: (packed(weight, layout), layout),
        RESULT: y,
        SCALES | SOURCE: torch.tensor([layer.input.scale], dtype=torch.float32),
        SCALES | WEIGHT: layer.weight_scale,
    }
    if bias is not None:
        operands[BIAS] = bias
    if layer.input.zero_point:
        operands[ZERO_POINTS | SOURCE] = torch.tensor([layer.input.zero_point], dtype=torch.int32)
    if layer.output is not None:
        operands[SCALES | RESULT] = torch.tensor([layer.output.scale], dtype=torch.float32)
        if layer.output.zero_point:
            zero_point = torch.tensor([layer.output.zero_point], dtype=torch.int32)
            operands[ZERO_POINTS | RESULT] = zero_point
    return Primitive(description, operands)
