"""The kernels as operators of PyTorch, `torch.ops.fxquant.*`, for graphs that leave fx.

`torch.export` and `torch.compile` cannot look into oneDNN's packed weights. So while they trace, a
call of a kernel stands in their graph as one operator, whose weight is the plain int8 tensor; a
process that loads such a graph needs `import fxquant`. Called directly a kernel is just a function.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from fxquant.errors import LoweringError
from fxquant.int8 import checked, kernels
from fxquant.int8.operands import Geometry, Result, Uint8, Weight


def call(kernel: Callable[..., Tensor], x: Uint8, *arguments: Any) -> Tensor:
    """Return what `kernel`, a function with an operator, gives for `x` and `arguments`.

    Raises:
        LoweringError: `x` is neither on the CPU, where the kernels run, nor on "meta".
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or not x.values.is_cpu:
        _require_device(x.values)
        return _OPERATORS[kernel](*_flat((x, *arguments)))
    return kernel(x, *arguments)


def _require_device(x: Tensor) -> None:
    if x.device.type not in ("cpu", "meta"):
        raise LoweringError(
            f"int8 kernels run on the CPU, and got a tensor on {x.device}: move model and input "
            "with .cpu(), or run there what fxquant.convert returned, or fxquant.to_qdq of it"
        )


def _flat(arguments: Iterable[Any]) -> list[Any]:
    """Return the fields of records, one behind the other, with the arguments that are none."""
    return [part for each in arguments for part in (each if isinstance(each, tuple) else [each])]


_OTHERS = ("return", "verify")  # of type hints: no records, and no names


def _of_flat(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `function` for the fields of its records, one behind the other."""
    kinds = [kind for name, kind in get_type_hints(function).items() if name not in _OTHERS]

    def call(*flat: Any) -> Tensor:
        # Lists become tuples: a `Geometry` is the key of a packed weight.
        left = iter(tuple(each) if isinstance(each, list) else each for each in flat)
        records = [
            next(left) if kind is str else kind(*itertools.islice(left, len(kind._fields)))
            for kind in kinds
        ]
        return function(*records, *left)  # PyTorch leaves a `verify` out that is true

    return call


def _conv_add_anew(
    x: Uint8, weight: Weight, geometry: Geometry, other: Uint8, result: Result, verify: bool = True
) -> Tensor:
    """Return what `checked.conv_add` returns; an operator must not overwrite its operand."""
    operand = other._replace(values=other.values.clone())
    return checked.conv_add(x, weight, geometry, operand, result, verify)


def _like_conv(
    x: Uint8,
    weight: Weight,
    geometry: Geometry,
    activation: str,
    result: Result,
    verify: bool = True,
) -> Tensor:
    """Return a tensor of the type and shape of a convolution's result."""
    convolve: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(geometry.stride)]
    y: Tensor = convolve(x.values.float(), weight.integers.float(), None, *geometry)
    return _channels_last(y.to(result.dtype))


def _like_conv_add(
    x: Uint8, weight: Weight, geometry: Geometry, other: Uint8, result: Result, verify: bool = True
) -> Tensor:
    return _channels_last(other.values)


def _channels_last(y: Tensor) -> Tensor:
    """Return `y` with its channels last in memory."""
    return y.movedim(1, -1).contiguous().movedim(-1, 1)


def _like_linear(
    x: Uint8, weight: Weight, activation: str, result: Result, verify: bool = True
) -> Tensor:
    shape = (*x.values.shape[:-1], weight.integers.shape[0])
    return x.values.new_empty(shape, dtype=result.dtype)


def _like_add(a: Uint8, b: Uint8, result: Result) -> Tensor:
    return a.values + b.values


def _operator(
    kernel: Callable[..., Tensor],
    schema: str,
    fake: Callable[..., Tensor],
    body: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """Register `kernel`, run as `body`, and say by `fake` what its result looks like."""
    operator = torch.library.custom_op(
        f"fxquant::{kernel.__name__}",
        _of_flat(body or kernel),
        mutates_args=(),
        device_types="cpu",
        schema=f"({schema}) -> Tensor",
    )
    operator.register_fake(_of_flat(fake))
    return operator


# Exported files name the arguments: they stay as they are.
_UINT8 = "Tensor {0}, float {0}_scale, int {0}_zero_point"
_X, _OTHER, _A, _B = (_UINT8.format(name) for name in ("x", "other", "a", "b"))
_LINEAR = f"{_X}, Tensor weight, Tensor weight_scale, Tensor? bias"
_CONV = f"{_LINEAR}, int[] stride, int[] padding, int[] dilation, int groups"
_Y = "y_scale, int y_zero_point, float y_min, float y_max"
_VERIFY = "bool verify=True"
_OPERATORS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    checked.conv: _operator(
        checked.conv, f"{_CONV}, str activation, float? {_Y}, {_VERIFY}", _like_conv
    ),
    checked.conv_add: _operator(
        checked.conv_add,
        f"{_CONV}, {_OTHER}, float {_Y}, {_VERIFY}",
        _like_conv_add,
        _conv_add_anew,
    ),
    checked.linear: _operator(
        checked.linear, f"{_LINEAR}, str activation, float? {_Y}, {_VERIFY}", _like_linear
    ),
    kernels.add: _operator(kernels.add, f"{_A}, {_B}, float {_Y}", _like_add),
}
