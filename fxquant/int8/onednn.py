"""oneDNN's int8 kernels: convolutions and products, with what is behind them.

    y = f(s_x · s_w · Σ (x - z_x) · w + b + s_a · (a - z_a)),   q_y = round(y / s_y) + z_y

The symbols are those of `fxquant.int8.kernels`. Weights are packed once: see
`fxquant.int8.prepacking`.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    for name in ("_is_vnni_supported", "_is_cpu_support_vnni"):  # the second: PyTorch 2.4
        if hasattr(torch.cpu, name):
            return bool(getattr(torch.cpu, name)())
    return False


def conv(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    y_scale: float | None,
    y_zero_point: int,
    y_min: float,
    y_max: float,
) -> Tensor:
    """Return a convolution over 1 to 3 dimensions, an activation function behind it.

    Args:
        x: uint8 (N, in, *positions).
        x_scale: of x.
        x_zero_point: of x.
        weight: int8 (out, in/groups, *kernel).
        weight_scale: float32 (out,) or (1,).
        bias: float32 (out,) or None.
        stride: one a dimension, as are `padding` and `dilation`.
        padding: of zeros, on both sides.
        dilation: of the kernel.
        groups: of channels.
        activation: "none"; over two dimensions also "swish" or "hardswish".
        y_scale: None for a result in float32.
        y_zero_point: of the result.
        y_min: the least value of the result, in its own units.
        y_max: the greatest.
    """
    if _is_product(weight, padding, groups):
        rows = _rows(x, stride)
        return _images(linear(
            rows, x_scale, x_zero_point, weight, weight_scale, bias,
            activation, y_scale, y_zero_point, y_min, y_max,
        ))  # fmt: skip
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    packed, zero_points = prepacked_conv(x, weight, weight_scale, geometry)
    operators = torch.ops.onednn
    kernel: Any = {
        3: operators.qconv1d_pointwise,
        4: operators.qconv2d_pointwise,
        5: operators.qconv3d_pointwise,
    }[weight.dim()]
    y: Tensor = kernel.default(
        x, x_scale, x_zero_point, packed, weight_scale, zero_points, bias, *geometry,
        y_scale or 1.0, y_zero_point, torch.float32 if y_scale is None else torch.uint8,
        activation, [], "",
    )  # fmt: skip
    if weight.dim() == 3:  # of an empty batch it is (0, out, 1, positions)
        y = y.flatten(2)
    return _within(y, y_min, y_max)


def conv_add(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    other: Tensor,
    other_scale: float,
    other_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    y_min: float,
    y_max: float,
) -> Tensor:
    """Return a convolution over two dimensions plus `other`, uint8, of the result's shape.

    `other` may be overwritten.
    """
    other = other.contiguous(memory_format=torch.channels_last)
    if _is_product(weight, padding, groups):
        rows = _rows(x, stride)
        return _images(_linear_add(
            rows, x_scale, x_zero_point, weight, weight_scale, bias, _rows(other, (1, 1)),
            other_scale, other_zero_point, y_scale, y_zero_point, y_min, y_max,
        ))  # fmt: skip
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    packed, zero_points = prepacked_conv(x, weight, weight_scale, geometry)
    # By name: the order of the arguments differs between versions of PyTorch.
    y = torch.ops.onednn.qconv2d_pointwise.binary(
        qx=x, x_scale=x_scale, x_zero_point=x_zero_point,
        qw=packed, w_scale=weight_scale, w_zero_point=zero_points, bias=bias,
        stride=geometry[0], padding=geometry[1], dilation=geometry[2], groups=groups,
        qaccum=other, accum_scale=other_scale, accum_zero_point=other_zero_point,
        output_scale=y_scale, output_zero_point=y_zero_point, output_dtype=torch.uint8,
        binary_attr="sum", alpha=1.0, unary_attr="none", unary_scalars=[], unary_algorithm="",
    )  # fmt: skip
    return _within(y, y_min, y_max)


def linear(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str,
    y_scale: float | None,
    y_zero_point: int,
    y_min: float,
    y_max: float,
) -> Tensor:
    """Return x · weightᵀ + bias, an activation function behind it.

    Args:
        x: uint8 (…, in).
        x_scale: of x.
        x_zero_point: of x.
        weight: int8 (out, in), or (out, in, 1, 1).
        weight_scale: float32 (out,) or (1,).
        bias: float32 (out,) or None.
        activation: "none", "swish", "hardswish", "tanh", "gelu" or "gelu_tanh".
        y_scale: None for a result in float32.
        y_zero_point: of the result.
        y_min: the least value of the result, in its own units.
        y_max: the greatest.
    """
    packed, zero_points = prepacked_linear(x, weight, weight_scale)
    name, _, algorithm = activation.partition("_")
    y: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        x, x_scale, x_zero_point, packed, weight_scale, zero_points, bias,
        y_scale or 1.0, y_zero_point, torch.float32 if y_scale is None else torch.uint8,
        name, [], algorithm or "none",
    )  # fmt: skip
    y = y.reshape(*x.shape[:-1], weight.shape[0])  # of an empty batch it is (0, out)
    return _within(y, y_min, y_max)


def _linear_add(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    other: Tensor,
    other_scale: float,
    other_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    y_min: float,
    y_max: float,
) -> Tensor:
    """Return x · weightᵀ + bias + `other`, which is of the result's shape and overwritten."""
    packed, zero_points = prepacked_linear(x, weight, weight_scale)
    torch.ops.onednn.qlinear_pointwise.binary(
        qx=x.flatten(0, -2), x_scale=x_scale, x_zero_point=x_zero_point,
        qw=packed, w_scale=weight_scale, w_zero_point=zero_points, bias=bias,
        other=other.flatten(0, -2), other_scale=other_scale, other_zp=other_zero_point,
        output_scale=y_scale, output_zero_point=y_zero_point, output_dtype=torch.uint8,
        binary_post_op="sum", binary_alpha=1.0, unary_post_op="none",
        unary_post_op_args=[], unary_post_op_algorithm="",
    )  # fmt: skip
    return _within(other, y_min, y_max)


def _is_product(weight: Tensor, padding: Sequence[int], groups: int) -> bool:
    """Whether a convolution over images multiplies each position by a matrix.

    oneDNN's convolutions do that as fast, but not with a zero-point in `x`, nor where the layout
    that a weight was packed in for one shape is not the one wanted at another: 10 times as long.
    """
    return weight.shape[2:] == (1, 1) and not any(padding) and groups == 1


def _rows(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Return (N, C, H, W) as (N, H/stride, W/stride, C), contiguous."""
    return x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1).contiguous()


def _images(rows: Tensor) -> Tensor:
    """Return (N, H, W, C) as (N, C, H, W)."""
    return rows.permute(0, 3, 1, 2)


def _within(y: Tensor, y_min: float, y_max: float) -> Tensor:
    """Return `y` clamped, in place, where its dtype alone does not see to it."""
    if y.dtype is torch.uint8:
        return y.clamp_(int(y_min), int(y_max)) if y_min > 0 or y_max < 255 else y
    return y.clamp_(y_min, y_max) if y_min > -math.inf or y_max < math.inf else y
