"""oneDNN's int8 kernels: convolutions and products, with what is behind them.

    y = f(s_x · s_w · Σ (x - z_x) · w + b + s_a · (a - z_a)),   q_y = round(y / s_y) + z_y

The symbols are those of `fxquant.int8.kernels`. Weights are packed once: see
`fxquant.int8.prepacking`.
"""

from __future__ import annotations

import math
import platform
from typing import Any

import torch
from torch import Tensor

from fxquant.int8.operands import Geometry, Result, Uint8, Weight
from fxquant.int8.prepacking import prepacked_conv, prepacked_linear


def why_unavailable() -> str | None:
    """Return why this machine cannot run the kernels, or None if it can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"the processor is {platform.machine()}, not x86-64"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this build of PyTorch has no oneDNN"
    if not _has_vnni():
        # Without VNNI two products of uint8 and int8 are added in int16, which saturates.
        return "the processor has no VNNI instructions, and without them int8 sums saturate"
    return None


def _has_vnni() -> bool:
    is_supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return is_supported is not None and bool(is_supported())


def conv(x: Uint8, weight: Weight, geometry: Geometry, activation: str, result: Result) -> Tensor:
    """Return a convolution over 1 to 3 dimensions, an activation function behind it.

    Args:
        x: (N, in, *positions).
        weight: (out, in/groups, *kernel).
        geometry: of the kernel.
        activation: "none"; over two dimensions also "swish" or "hardswish".
        result: what to return.
    """
    if _is_product(weight, geometry):
        return _images(linear(_rows(x, geometry.stride), weight, activation, result))
    packed, zero_points = prepacked_conv(x.values, weight, geometry)
    dims = len(geometry.stride)
    kernel: Any = getattr(torch.ops.onednn, f"qconv{dims}d_pointwise")
    y: Tensor = kernel.default(
        *x, packed, weight.scale, zero_points, weight.bias, *geometry,
        result.scale or 1.0, result.zero_point, result.dtype, activation, [], "",
    )  # fmt: skip
    if dims == 1:  # of an empty batch it is (0, out, 1, positions)
        y = y.flatten(2)
    return _within(y, result)


def conv_add(x: Uint8, weight: Weight, geometry: Geometry, other: Uint8, result: Result) -> Tensor:
    """Return a convolution over two dimensions plus `other`, which is of the result's shape.

    `other` may be overwritten.
    """
    if _is_product(weight, geometry):
        return _images(_linear_add(_rows(x, geometry.stride), weight, _rows(other, (1, 1)), result))
    packed, zero_points = prepacked_conv(x.values, weight, geometry)
    y = torch.ops.onednn.qconv2d_pointwise.binary(
        *x, packed, weight.scale, zero_points,
        other.values.contiguous(memory_format=torch.channels_last), weight.bias, *geometry,
        result.scale, result.zero_point, result.dtype, other.scale, other.zero_point,
        binary_attr="sum", alpha=1.0, unary_attr="none", unary_scalars=[], unary_algorithm="",
    )  # fmt: skip
    return _within(y, result)


def linear(x: Uint8, weight: Weight, activation: str, result: Result) -> Tensor:
    """Return x · weightᵀ + bias, an activation function behind it.

    Args:
        x: (…, in).
        weight: (out, in), or (out, in, 1, 1).
        activation: "none", "swish", "hardswish", "tanh", "gelu" or "gelu_tanh".
        result: what to return.
    """
    packed, zero_points = prepacked_linear(x.values, weight)
    name, _, algorithm = activation.partition("_")
    y: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        *x, packed, weight.scale, zero_points, weight.bias,
        result.scale or 1.0, result.zero_point, result.dtype, name, [], algorithm or "none",
    )  # fmt: skip
    # Of an empty batch it is (0, out).
    y = y.reshape(*x.values.shape[:-1], weight.integers.shape[0])
    return _within(y, result)


def _linear_add(x: Uint8, weight: Weight, other: Uint8, result: Result) -> Tensor:
    """Return x · weightᵀ + bias + `other`, which is of the result's shape and overwritten."""
    packed, zero_points = prepacked_linear(x.values, weight)
    torch.ops.onednn.qlinear_pointwise.binary(
        x.values.flatten(0, -2), x.scale, x.zero_point, packed, weight.scale, zero_points,
        other.values.flatten(0, -2), weight.bias,
        result.scale, result.zero_point, result.dtype, other.scale, other.zero_point,
        binary_post_op="sum", binary_alpha=1.0, unary_post_op="none",
        unary_post_op_args=[], unary_post_op_algorithm="",
    )  # fmt: skip
    return _within(other.values, result)


def _is_product(weight: Weight, geometry: Geometry) -> bool:
    """Whether a convolution over images multiplies each position by a matrix.

    oneDNN's convolutions do that as fast, but not with a zero-point in `x`, nor where the layout
    that a weight was packed in for one shape is not the one wanted at another: 10 times as long.
    """
    is_matrix = weight.integers.shape[2:] == (1, 1) and geometry.groups == 1
    return is_matrix and not any(geometry.padding)


def _rows(x: Uint8, stride: tuple[int, ...]) -> Uint8:
    """Return (N, C, H, W) as (N, H/stride, W/stride, C), contiguous."""
    rows = x.values[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1).contiguous()
    return Uint8(rows, x.scale, x.zero_point)


def _images(rows: Tensor) -> Tensor:
    """Return (N, H, W, C) as (N, C, H, W)."""
    return rows.permute(0, 3, 1, 2)


def _within(y: Tensor, result: Result) -> Tensor:
    """Return `y` clamped, in place, where its dtype alone does not see to it."""
    low, high = result.low, result.high
    if y.dtype is torch.uint8:
        return y.clamp_(int(low), int(high)) if low > 0 or high < 255 else y
    return y.clamp_(low, high) if low > -math.inf or high < math.inf else y
