"""The kernels as operators of PyTorch, `torch.ops.fxquant.*`, for graphs that leave fx.

`torch.export` and `torch.compile` cannot look into oneDNN's packed weights. So while they trace, a
call of a kernel stands in their graph as one operator, whose weight is the plain int8 tensor; a
process that loads such a graph needs `import fxquant`. Called directly a kernel is just a function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxquant.int8 import kernels, onednn

_TYPES = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "Sequence[int]": "int[]",
    "Sequence[float]": "float[]",
    "float | None": "float?",
    "float": "float",
    "int": "int",
    "bool": "bool",
    "str": "str",
}


def call(kernel: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return what `kernel`, a function of `fxquant.int8.kernels`, gives for `arguments`."""
    if torch.compiler.is_compiling():
        return _OPERATORS[kernel](*arguments)
    return kernel(*arguments)


def _conv_add_anew(*arguments: Any) -> Tensor:
    """Return what `onednn.conv_add` returns; an operator must not overwrite its operand."""
    given = _by_name(onednn.conv_add, arguments)
    return onednn.conv_add(**{**given, "other": given["other"].clone()})


def _like_conv(*arguments: Any) -> Tensor:
    """Return a tensor of the type and shape of a convolution's result."""
    given = _by_name(onednn.conv, arguments)
    weight, geometry = given["weight"], [given[name] for name in _GEOMETRY]
    convolve: Any = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[weight.dim()]
    y: Tensor = convolve(given["x"].float(), weight.float(), None, *geometry)
    y = y if given["y_scale"] is None else y.to(torch.uint8)
    return y.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last in memory


def _like_conv_add(*arguments: Any) -> Tensor:
    other: Tensor = _by_name(onednn.conv_add, arguments)["other"]
    return other.movedim(1, -1).contiguous().movedim(-1, 1)


def _like_linear(*arguments: Any) -> Tensor:
    given = _by_name(onednn.linear, arguments)
    x: Tensor = given["x"]
    dtype = torch.float32 if given["y_scale"] is None else torch.uint8
    return x.new_empty((*x.shape[:-1], given["weight"].shape[0]), dtype=dtype)


def _like_add(*arguments: Any) -> Tensor:
    given = _by_name(kernels.add, arguments)
    y: Tensor = given["a"] + given["b"]
    return y


_GEOMETRY = ("stride", "padding", "dilation", "groups")


def _by_name(kernel: Callable[..., Tensor], arguments: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(inspect.signature(kernel).parameters, arguments, strict=True))


def _operator(
    kernel: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    body: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """Register `kernel`, run as `body`, and say by `fake` what its result looks like."""
    parameters = inspect.signature(kernel).parameters.values()
    names = ", ".join(f"{_TYPES[each.annotation]} {each.name}" for each in parameters)
    operator = torch.library.custom_op(
        f"fxquant::{kernel.__name__}",
        body or kernel,
        mutates_args=(),
        device_types="cpu",
        schema=f"({names}) -> Tensor",
    )
    operator.register_fake(fake)
    return operator


_OPERATORS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    onednn.conv: _operator(onednn.conv, _like_conv),
    onednn.conv_add: _operator(onednn.conv_add, _like_conv_add, _conv_add_anew),
    onednn.linear: _operator(onednn.linear, _like_linear),
    kernels.add: _operator(kernels.add, _like_add),
}
