"""Which primitive computes what a node computes.

A maker gets a node's inputs as they are now, and what the graph's own node makes of them. It takes
memory for a result of the same kind, and returns the primitive that writes it, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import module_of, operation_of
from fxquant.int8 import Int8Add, Int8Conv, kernels
from fxquant.programs import moves
from fxquant.programs.buffers import Buffers, is_dense
from fxquant.programs.primitives import MANY, OTHER, SOURCE, Primitive, is_channels_last


@dataclass(frozen=True)
class Made:
    """A primitive, and what it reads and writes."""

    primitive: Primitive
    result: Tensor
    reads: dict[int, fx.Node]
    """The node of whose tensor each operand is."""


@dataclass(frozen=True)
class Question:
    """A node, for which a primitive is wanted."""

    gm: fx.GraphModule
    node: fx.Node
    values: dict[fx.Node, Any]
    """What the nodes before compute."""
    buffers: Buffers

    def result_like(self, expected: Tensor) -> Tensor:
        """Return memory for a result, in the layout of `expected` if that leaves no gaps."""
        if is_dense(expected):
            return self.buffers.like(expected)
        return self.buffers.like(expected.contiguous())

    @property
    def rest(self) -> tuple[Any, ...]:
        """The arguments behind the first one."""
        return self.node.args[1:]

    def source(self) -> tuple[fx.Node, Tensor] | None:
        """Return the node whose tensor is worked on, and the tensor, if no two values are one."""
        node = self.node.args[0] if self.node.args else None
        x = self.values[node] if isinstance(node, fx.Node) else None
        if not isinstance(node, fx.Node) or not isinstance(x, Tensor) or x.numel() == 0:
            return None
        return None if 0 in x.stride() or not 0 < x.dim() <= 6 else (node, x)


def maker_of(gm: fx.GraphModule, node: fx.Node) -> Callable[[Question, Tensor], Made | None] | None:
    """Return what makes the primitive for a node, or None."""
    if node.kwargs:
        return None
    if node.op == "call_function" and node.target in _KERNELS:
        return _KERNELS[node.target]
    if isinstance(module_of(gm, node), Int8Add):
        return _add
    operation = operation_of(gm, node)
    if operation.concatenated is not None:
        return _concatenate
    return _float_average if operation.averaged is not None else None


def _quantize(asked: Question, expected: Tensor) -> Made | None:
    """Round to integers, with channels last where convolutions read them."""
    found, (scale, zero_point, most) = asked.source(), asked.rest
    if found is None or found[1].dtype != torch.float32 or most != 255:
        return None
    node, x = found
    users = asked.node.users
    if x.dim() > 2 and all(isinstance(module_of(asked.gm, user), Int8Conv) for user in users):
        expected = expected.movedim(1, -1).contiguous().movedim(-1, 1)
    y = asked.result_like(expected)
    return Made(moves.rounding(x, y, scale, zero_point), y, {SOURCE: node})


def _dequantize(asked: Question, expected: Tensor) -> Made | None:
    found = asked.source()
    if found is None or found[1].dtype != torch.uint8:
        return None
    y = asked.result_like(expected)
    return Made(moves.widening(found[1], y, *asked.rest), y, {SOURCE: found[0]})


def _widen(asked: Question, expected: Tensor) -> Made | None:
    found = asked.source()
    if found is None or found[1].dtype != torch.uint8:
        return None
    y = asked.result_like(expected)
    return Made(moves.widening(found[1], y, 1.0, *asked.rest), y, {SOURCE: found[0]})


def _requantize(asked: Question, expected: Tensor) -> Made | None:
    found, (*numbers, most) = asked.source(), asked.rest
    if found is None or found[1].dtype != torch.uint8 or most != 255:
        return None
    y = asked.result_like(expected)
    return Made(moves.requantizing(found[1], y, *numbers), y, {SOURCE: found[0]})


def _max_pool2d(asked: Question, expected: Tensor) -> Made | None:
    found = asked.source()
    if found is None or found[1].dim() != 4:
        return None
    node, x = found
    if not (is_channels_last(x) and is_channels_last(expected)):
        return None
    y = asked.result_like(expected)
    return Made(moves.max_pool2d(x, y, *asked.rest[:4]), y, {SOURCE: node})


def _average(asked: Question, expected: Tensor) -> Made | None:
    """Average integers over all positions."""
    found, (zero_point, dims, _, ratio, shift, most) = asked.source(), asked.rest
    if found is None or most != 255 or not _averages_positions(found[1], dims):
        return None
    node, x = found
    y = asked.buffers.take(expected.shape, _in_order(expected), torch.uint8)
    factor = ratio / math.prod(x.shape[2:])
    return Made(moves.average(x, y, zero_point, factor, shift), y, {SOURCE: node})


def _float_average(asked: Question, expected: Tensor) -> Made | None:
    """Average floats over all positions of images."""
    found, averaged = asked.source(), operation_of(asked.gm, asked.node).averaged
    if found is None or averaged is None or found[1].dtype != torch.float32:
        return None
    node, x = found
    if x.dim() != 4 or not _averages_positions(x, averaged[0]):
        return None
    y = asked.buffers.take(expected.shape, _in_order(expected), torch.float32)
    return Made(moves.float_average(x, y), y, {SOURCE: node})


def _averages_positions(x: Tensor, dims: Sequence[int]) -> bool:
    positions = {*range(2, x.dim())}
    return {dim % x.dim() for dim in dims} == positions and is_channels_last(x)


def _add(asked: Question, expected: Tensor) -> Made | None:
    """Add integers to integers."""
    module, nodes = module_of(asked.gm, asked.node), asked.node.all_input_nodes
    assert isinstance(module, Int8Add)
    if len(nodes) != 2 or tuple(nodes) != asked.node.args:
        return None
    a, b = (asked.values[node] for node in nodes)
    alike = all((x.shape, x.stride()) == (expected.shape, expected.stride()) for x in (a, b))
    if not alike or not is_dense(a) or module.other is None:
        return None
    y = asked.result_like(expected)
    operands = zip((SOURCE, OTHER), nodes, strict=True)
    return Made(moves.adding(a, b, y, module.input, module.other, module.result), y, dict(operands))


def _concatenate(asked: Question, expected: Tensor) -> Made | None:
    nodes = operation_of(asked.gm, asked.node).concatenated
    assert nodes is not None
    parts = [asked.values[node] for node in nodes]
    dims = [
        dim for dim in range(expected.dim())
        if sum(x.shape[dim] for x in parts) == expected.shape[dim]
        and all(x.shape[:dim] == expected.shape[:dim] for x in parts)
        and all(x.shape[dim + 1 :] == expected.shape[dim + 1 :] for x in parts)
    ]  # fmt: skip
    if len(dims) != 1 or any(x.dtype != expected.dtype or x.numel() == 0 for x in parts):
        return None
    if expected.dtype not in (torch.uint8, torch.float32) or not is_dense(expected):
        return None
    y = asked.result_like(expected)
    reads = {MANY + number: node for number, node in enumerate(nodes)}
    return Made(moves.concatenating(parts, y, dims[0]), y, reads)


def _in_order(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of such a tensor whose values are in order."""
    return tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.dim()))


_KERNELS: dict[Any, Callable[[Question, Tensor], Made | None]] = {
    kernels.quantize: _quantize,
    kernels.dequantize: _dequantize,
    kernels.widen: _widen,
    kernels.requantize: _requantize,
    kernels.max_pool2d: _max_pool2d,
    kernels.average: _average,
}
