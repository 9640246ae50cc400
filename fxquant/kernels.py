"""The int8 kernels of oneDNN, and the few steps on integers that it has none for.

    y = f(s_x · s_w · Σ (x - z_x) · w + b + s_a · (a - z_a)),   q_y = round(y / s_y) + z_y

x, a and q_y are uint8 on grids that start at 0, w is int8; f is an activation function, a an
operand to add. Sums of products are exact in int32, all else is float32; a layer without s_y
returns y. The result is held within [y_min, y_max], in its own units: of integers that is what a
ReLU or a ReLU6 before the rounding does, too.

Weights are packed for the kernels once (`fxquant.prepacking`). `fxquant.operators` makes operators
of these functions, for `torch.export`.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from fxquant.prepacking import prepacked_conv, prepacked_linear

_Kernel = TypeVar("_Kernel", bound=Callable[..., Tensor])


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


def _leaf(kernel: _Kernel) -> _Kernel:
    """Let fx trace a call of `kernel` as one node; unpickling a graph traces it anew."""

    @functools.wraps(kernel)
    def call(x: Tensor, *arguments: Any, **options: Any) -> Any:
        if has_torch_function((x,)):
            return handle_torch_function(call, (x,), x, *arguments, **options)
        return kernel(x, *arguments, **options)

    return call  # type: ignore[return-value]


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


def add(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    y_min: float,
    y_max: float,
) -> Tensor:
    """Return the sum of two uint8 tensors as uint8; shapes broadcast.

    In float32: PyTorch 2.15's `onednn.qadd` takes integers from 128 on for negative ones.
    """
    y, other = dequantize(a, a_scale, a_zero_point), dequantize(b, b_scale, b_zero_point)
    y = y.add_(other) if y.shape == other.shape else y + other
    return _rounded(y.mul_(1 / y_scale), y_zero_point, y_min, y_max)


@_leaf
def max_pool2d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """Return the greatest integer of each window of a uint8 tensor (N, C, H, W) or (C, H, W)."""
    if x.dim() == 3:
        return max_pool2d(x[None], kernel_size, stride, padding, dilation, ceil_mode)[0]
    y: Tensor = torch.ops.quantized.max_pool2d(
        x, list(kernel_size), list(stride), list(padding), list(dilation), ceil_mode
    )
    return y


@_leaf
def average(
    x: Tensor,
    x_zero_point: int,
    dims: Sequence[int],
    keepdim: bool,
    ratio: float,
    y_zero_point: int,
    y_max: int,
) -> Tensor:
    """Return the mean of a uint8 tensor over `dims` as uint8; `ratio` is s_x/s_y."""
    count = math.prod([x.shape[dim] for dim in dims])
    sums = x.sum(tuple(dims), keepdim=keepdim, dtype=torch.int32).sub_(count * x_zero_point)
    return narrow(sums.to(torch.float32), ratio / count, y_zero_point, 0, y_max)


@_leaf
def widen(x: Tensor, zero_point: int) -> Tensor:
    """Return x - zero_point, of a uint8 tensor, in float32."""
    # Not x.to(torch.float32): PyTorch 2.4 exports no change in place of what may be `x` itself.
    wide = torch.empty_like(x, dtype=torch.float32)
    return wide.copy_(x).sub_(zero_point)


@_leaf
def narrow(x: Tensor, factor: float, zero_point: int, y_min: float, y_max: float) -> Tensor:
    """Return clamp(round(x · factor) + zero_point, y_min, y_max) as uint8."""
    return _rounded(x * factor, zero_point, y_min, y_max)


def _rounded(y: Tensor, zero_point: int, y_min: float, y_max: float) -> Tensor:
    """Return `y`, which is changed in place, as integers."""
    return y.round_().add_(zero_point).clamp_(y_min, y_max).to(torch.uint8)


@_leaf
def quantize(x: Tensor, scale: float, zero_point: int, y_max: int) -> Tensor:
    """Return the integers of Eq. (1) as uint8."""
    return narrow(x.to(torch.float32), 1 / scale, zero_point, 0, y_max)


@_leaf
def dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Return the real values of Eq. (4) in float32."""
    return widen(x, zero_point).mul_(scale)


def _within(y: Tensor, y_min: float, y_max: float) -> Tensor:
    """Return `y` clamped, in place, where its dtype alone does not see to it."""
    if y.dtype is torch.uint8:
        return y.clamp_(int(y_min), int(y_max)) if y_min > 0 or y_max < 255 else y
    return y.clamp_(y_min, y_max) if y_min > -math.inf or y_max < math.inf else y
