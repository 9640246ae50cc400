"""Which primitive computes what a node computes.

A maker gets a node's inputs as they are now, and what the graph's own node makes of them. It takes
memory for a result of the same kind, and returns the primitive that writes it, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxquant.graph import argument, module_of, operation_of
from fxquant.int8 import Int8Add, Int8Conv, kernels
from fxquant.programs import moves
from fxquant.programs.buffers import Buffers, is_dense
from fxquant.programs.primitives import (
    MANY,
    SOURCE,
    WEIGHT,
    Primitive,
    channels_last,
    is_channels_last,
)
from fxquant.programs.steps import fill

_TOLERANCE = 1e-5
_MOST_SCORES = 1 << 26  # bytes: beyond, PyTorch's attention works block by block


class Made:
    """Primitives, one after the other, and the memory that the last one writes."""

    def __init__(self, result: Tensor, *, tolerance: float = 0.0) -> None:
        self.result = result
        self.tolerance = tolerance
        """By how much of its greatest value the result may differ from the graph's: in float32
        other kernels round otherwise."""
        self.primitives: list[Primitive] = []
        self.reads: list[tuple[Primitive, int, fx.Node]] = []
        """The operands of primitives that are a node's tensor."""
        self.scratch: list[Tensor] = []
        """Memory that is free again behind the last one."""
        self.filled: tuple[fx.Node, Tensor] | None = None
        """A mask, and the memory for what it adds: it is filled before the first one."""

    def then(self, primitive: Primitive, source: fx.Node | None = None) -> Made:
        """Add a primitive, whose source may be a node's tensor."""
        self.primitives.append(primitive)
        if source is not None:
            self.reads.append((primitive, SOURCE, source))
        return self

    def run(self, values: Mapping[fx.Node, Any]) -> None:
        """Compute, of the values of nodes."""
        if self.filled is not None:
            node, memory = self.filled
            fill(memory, values[node])
        for primitive in self.primitives:
            primitive.run()


@dataclass(frozen=True)
class Question:
    """A node, for which a primitive is wanted."""

    gm: fx.GraphModule
    node: fx.Node
    values: dict[fx.Node, Any]
    """What the nodes before compute."""
    buffers: Buffers

    def floats_like(self, x: Tensor) -> Tensor:
        """Return memory for a float of each of a tensor's values, in its layout without gaps."""
        like = x if is_dense(x) else x.contiguous() if x.dim() < 3 else channels_last(x)
        return self.buffers.take(like.shape, like.stride(), torch.float32)

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


Maker = Callable[[Question, Tensor], Made | None]


def maker_of(gm: fx.GraphModule, node: fx.Node) -> Maker | None:
    """Return what makes the primitive for a node, or None."""
    if node.target is F.scaled_dot_product_attention:
        return _attend
    if node.kwargs:
        return None
    if type(module_of(gm, node)) is nn.LayerNorm:
        return _normalize
    if node.op == "call_function" and node.target in _KERNELS:
        return _KERNELS[node.target]
    if isinstance(module_of(gm, node), Int8Add):
        return _add
    return _concatenate if operation_of(gm, node).concatenated is not None else None


def _quantize(asked: Question, expected: Tensor) -> Made | None:
    """Round to integers, with channels last where convolutions read them."""
    found = asked.source()
    if found is None or found[1].dtype != torch.float32 or not is_dense(found[1]):
        return None
    node, x = found
    users = asked.node.users
    if not all(isinstance(module_of(asked.gm, user), Int8Conv) for user in users) or (
        x.dim() < 3 or is_channels_last(x)
    ):
        made = Made(asked.buffers.take(x.shape, x.stride(), torch.uint8))
        return made.then(moves.rounding(x, made.result, *asked.rest), source=node)
    made = Made(asked.buffers.like(channels_last(x.to(torch.uint8))))
    rounded = asked.buffers.take(x.shape, x.stride(), torch.uint8)
    made.scratch.append(rounded)
    made.then(moves.rounding(x, rounded, *asked.rest), source=node)
    return made.then(moves.copying(rounded, made.result))


def _dequantize(asked: Question, expected: Tensor) -> Made | None:
    return _widened(asked, *asked.rest)


def _widen(asked: Question, expected: Tensor) -> Made | None:
    return _widened(asked, 1.0, *asked.rest)


def _widened(asked: Question, scale: float, zero_point: int) -> Made | None:
    """Make floats of integers."""
    found = asked.source()
    if found is None or found[1].dtype != torch.uint8:
        return None
    made = Made(asked.floats_like(found[1]))
    return made.then(moves.widening(found[1], made.result, scale, zero_point), source=found[0])


def _requantize(asked: Question, expected: Tensor) -> Made | None:
    """Make integers of others, by way of floats."""
    found, (x_scale, x_zero_point, scale, *ends) = asked.source(), asked.rest
    if found is None or found[1].dtype != torch.uint8:
        return None
    floats = asked.floats_like(found[1])
    made = Made(asked.buffers.take(floats.shape, floats.stride(), torch.uint8))
    made.scratch.append(floats)
    made.then(moves.widening(found[1], floats, x_scale, x_zero_point), source=found[0])
    return made.then(moves.rounding(floats, made.result, scale, *ends))


def _max_pool2d(asked: Question, expected: Tensor) -> Made | None:
    found = asked.source()
    if found is None or found[1].dim() != 4:
        return None
    node, x = found
    if not (is_channels_last(x) and is_channels_last(expected)):
        return None
    made = Made(asked.buffers.like(expected))
    return made.then(moves.max_pool2d(x, made.result, *asked.rest[:4]), source=node)


def _average(asked: Question, expected: Tensor) -> Made | None:
    """Average integers over all positions."""
    found, (zero_point, dims, _, ratio, shift, most) = asked.source(), asked.rest
    if found is None or not _averages_positions(found[1], dims):
        return None
    node, x = found
    strides, count = _in_order(expected), math.prod(x.shape[2:])
    if 255 * count >= 2**24:  # beyond, float32 does not hold every sum
        return None
    made = Made(asked.buffers.take(expected.shape, strides, torch.uint8))
    sums = asked.buffers.take(expected.shape, strides, torch.float32)
    made.scratch.append(sums)
    made.then(moves.summing(x, sums, zero_point), source=node)
    return made.then(moves.narrowing(sums, made.result, ratio / count, shift, most))


def _averages_positions(x: Tensor, dims: Sequence[int]) -> bool:
    positions = {*range(2, x.dim())}
    return {dim % x.dim() for dim in dims} == positions and is_channels_last(x)


def _add(asked: Question, expected: Tensor) -> Made | None:
    """Add integers, by way of floats."""
    module, nodes = module_of(asked.gm, asked.node), asked.node.all_input_nodes
    assert isinstance(module, Int8Add)
    if len(nodes) != 2 or tuple(nodes) != asked.node.args or module.other is None:
        return None
    a, b = (asked.values[node] for node in nodes)
    if a.shape != b.shape or a.numel() == 0 or {a.dtype, b.dtype} != {torch.uint8}:
        return None
    first, second = asked.floats_like(a), asked.floats_like(a)
    made = Made(asked.buffers.take(first.shape, first.stride(), torch.uint8))
    made.scratch += [first, second]
    for x, floats, numbers, node in zip(
        (a, b), (first, second), (module.input, module.other), nodes, strict=True
    ):
        primitive = moves.widening(x, floats, numbers.scale, numbers.zero_point)
        made.then(primitive, source=node)
    return made.then(moves.adding(first, second, made.result, module.result))


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
    made = Made(asked.buffers.like(expected))
    primitive = moves.concatenating(parts, made.result, dims[0])
    made.then(primitive)
    made.reads += [(primitive, MANY + number, node) for number, node in enumerate(nodes)]
    return made


def _normalize(asked: Question, expected: Tensor) -> Made | None:
    """Normalize rows by a layer norm over the last axis."""
    found, norm = asked.source(), module_of(asked.gm, asked.node)
    assert isinstance(norm, nn.LayerNorm)
    if found is None or len(norm.normalized_shape) != 1 or not found[1].is_contiguous():
        return None
    node, x = found
    if norm.weight is None or norm.bias is None:
        return None
    weight, bias = norm.weight.detach(), norm.bias.detach()
    if not all(map(_is_float32, (x, weight, bias))):
        return None
    made = Made(asked.buffers.like(expected), tolerance=_TOLERANCE)
    return made.then(moves.normalizing(x, made.result, weight, bias, norm.eps), source=node)


def _attend(asked: Question, expected: Tensor) -> Made | None:
    """Attend: softmax(s · q kᵀ + mask) v."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    nodes = [argument(asked.node, place, name) for place, name in enumerate(names)]
    given, mask, scale = nodes[:3], nodes[3], nodes[6]
    if any(each not in (None, False, 0.0) for each in (*nodes[4:6], nodes[7])):
        return None
    if not all(isinstance(each, fx.Node) for each in given) or isinstance(scale, fx.Node):
        return None
    q, k, v = (asked.values[node] for node in given)
    shape = (*q.shape[:-1], k.shape[-2])
    fits = q.dim() in (3, 4) and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
    if not fits or math.prod(shape) * 4 > _MOST_SCORES or 0 in (*shape, q.shape[-1], v.shape[-1]):
        return None
    if not all(_is_float32(each) and 0 not in each.stride() for each in (q, k, v)):
        return None
    if not is_dense(expected):
        return None
    made, added = Made(asked.buffers.like(expected), tolerance=_TOLERANCE), None
    if mask is not None:
        added = _added(asked, made, mask, shape)
        if added is None:
            return None
    scores = asked.buffers.take(shape, _strides(shape), torch.float32)
    made.scratch.append(scores)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    first = moves.multiplying(q, k.transpose(-2, -1), scores, factor, added)
    last = moves.multiplying(scores, v, made.result)
    made.then(first, source=given[0]).then(moves.softmax(scores)).then(last)
    made.reads += [(first, WEIGHT, given[1]), (last, WEIGHT, given[2])]
    return made


def _added(asked: Question, made: Made, node: Any, shape: Sequence[int]) -> Tensor | None:
    """Return memory for what a mask adds to scores, which is filled before the primitives run."""
    mask = asked.values.get(node)
    if not isinstance(mask, Tensor) or mask.dtype not in (torch.bool, torch.float32):
        return None
    fits = mask.dim() == len(shape) and all(
        size in (1, whole) for size, whole in zip(mask.shape, shape, strict=True)
    )
    if not fits or not mask.is_cpu:
        return None
    added = asked.buffers.take(mask.shape, _strides(mask.shape), torch.float32)
    made.scratch.append(added)
    made.filled = (node, added)
    return added


def _is_float32(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32


def _in_order(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of such a tensor whose values are in order."""
    return _strides(tensor.shape)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


_KERNELS: dict[Any, Maker] = {
    kernels.quantize: _quantize,
    kernels.dequantize: _dequantize,
    kernels.widen: _widen,
    kernels.requantize: _requantize,
    kernels.max_pool2d: _max_pool2d,
    kernels.average: _average,
}
