"""The int8 kernels of oneDNN, and the few steps on integers that it has none for.

    y = f(s_x · s_w · Σ (x - z_x) · w + b + s_a · (a - z_a)),   q_y = round(y / s_y) + z_y

x, a and q_y are uint8 on grids that start at 0, w is int8; f is an activation function, a an
operand to add. Sums of products are exact in int32, all else is float32; a layer without s_y
returns y. The result is held within [y_min, y_max], in its own units: of integers that is what a
ReLU or a ReLU6 before the rounding does, too.

Those of oneDNN are in `fxquant.int8.onednn`. What stands as a call in graphs takes plain arguments,
all else the records of `fxquant.int8.operands`. `fxquant.int8.operators` makes operators of these
functions, for `torch.export`.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from fxquant.capture.graph_state import holds_numbers
from fxquant.int8.operands import Result, Uint8
from fxquant.stored_names import stored_as

_Kernel = TypeVar("_Kernel", bound=Callable[..., Tensor])


def _leaf(kernel: _Kernel) -> _Kernel:
    """Let fx trace a call of `kernel` as one node; unpickling a graph traces it anew."""

    @functools.wraps(kernel)
    def call(x: Tensor, *arguments: Any, **options: Any) -> Any:
        if has_torch_function((x,)):
            return handle_torch_function(call, (x,), x, *arguments, **options)
        return kernel(x, *arguments, **options)

    return call  # type: ignore[return-value]


def add(a: Uint8, b: Uint8, result: Result) -> Tensor:
    """Return the sum of two tensors as uint8; shapes broadcast.

    In float32: PyTorch 2.15's `onednn.qadd` takes integers from 128 on for negative ones.
    """
    assert result.scale is not None
    y, other = dequantize(*a), dequantize(*b)
    y = y.add_(other) if y.shape == other.shape else y + other
    return _rounded(y.mul_(1 / result.scale), result.zero_point, result.low, result.high)


@stored_as("kernels.max_pool2d")
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


@stored_as("kernels.pad")
@holds_numbers("zero_point")
@_leaf
def pad(x: Tensor, padding: Sequence[int], zero_point: int) -> Tensor:
    """Return a uint8 tensor with real zeros on its sides, as `F.pad` takes their number."""
    return F.pad(x, list(padding), value=zero_point)


@stored_as("kernels.average")
@holds_numbers("x_zero_point", "ratio", "y_zero_point")
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


@stored_as("kernels.widen")
@holds_numbers("zero_point")
@_leaf
def widen(x: Tensor, zero_point: int) -> Tensor:
    """Return x - zero_point, of a uint8 tensor, in float32."""
    return x.float().sub_(zero_point)


@stored_as("kernels.narrow")
@holds_numbers("factor", "zero_point")
@_leaf
def narrow(x: Tensor, factor: float, zero_point: int, y_min: float, y_max: float) -> Tensor:
    """Return clamp(round(x · factor) + zero_point, y_min, y_max) as uint8."""
    return _rounded(x * factor, zero_point, y_min, y_max)


def _rounded(y: Tensor, zero_point: int, y_min: float, y_max: float) -> Tensor:
    """Return `y`, which is changed in place, as integers."""
    return _in_steps(y, zero_point, y_min, y_max).to(torch.uint8)


def _in_steps(y: Tensor, zero_point: int, y_min: float, y_max: float) -> Tensor:
    return y.round_().add_(zero_point).clamp_(y_min, y_max)


@stored_as("kernels.quantize")
@holds_numbers("scale", "zero_point")
@_leaf
def quantize(x: Tensor, scale: float, zero_point: int, y_max: int) -> Tensor:
    """Return the integers of Eq. (1) as uint8; NaN, which they have none for, as real zero.

    Raises:
        TypeError: `x` is in integers: the float model would not take it either.

    Warns:
        RuntimeWarning: some are NaN. Graphs that are exported or compiled do not look.
    """
    if not x.is_floating_point():
        raise TypeError(f"an input of dtype {x.dtype}, where the model takes torch.float32")
    y = _in_steps(x.to(torch.float32) * (1 / scale), zero_point, 0, y_max)
    if _has_values(y) and math.isnan(y.sum().item()):  # 2 to 5 % of these steps
        nan = y.isnan()
        warnings.warn(
            f"{int(nan.sum())} of {y.numel()} values to be quantized are NaN: integers have none, "
            "and compute with 0 instead",
            RuntimeWarning,
            stacklevel=2,
        )
        y[nan] = zero_point
    return y.to(torch.uint8)


def _has_values(x: Tensor) -> bool:
    """Whether there are values to look at: not while a graph is traced, on "meta", under vmap."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or x.is_meta:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


@stored_as("kernels.requantize")
@holds_numbers("x_scale", "x_zero_point", "scale", "zero_point")
@_leaf
def requantize(
    x: Tensor, x_scale: float, x_zero_point: int, scale: float, zero_point: int, y_max: int
) -> Tensor:
    """Return the integers, by other parameters, of what uint8 integers stand for.

    By the arithmetic of the two steps that it takes the place of.
    """
    y = dequantize(x, x_scale, x_zero_point).mul_(1 / scale)
    return _rounded(y, zero_point, 0, y_max)


@stored_as("kernels.dequantize")
@holds_numbers("scale", "zero_point")
@_leaf
def dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Return the real values of Eq. (4) in float32."""
    return widen(x, zero_point).mul_(scale)
