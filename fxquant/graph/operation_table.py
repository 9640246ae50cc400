"""One table of what calls compute, whichever way they are written: a new operation is one row.

A ReLU may be a module, a function or a method; an addition `a + b`, `a += b` or `torch.add`. Each
row of `ROWS` is an `Operation`, or a function that reads it off the arguments, and its spellings.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxquant.capture.attention.scores import attention_weights_of
from fxquant.capture.recording.requirements import require
from fxquant.modules.by_channel import ChannelClamp
from fxquant.modules.layers import MATMULS
from fxquant.modules.torchvision_names import STOCHASTIC_DEPTH, STOCHASTIC_DEPTH_FUNCTION

Kind: TypeAlias = Literal[
    "layer", "batchnorm", "add", "concat", "average", "split", "max_pool2d", "identity", "relu",
    "leaky_relu", "channel_clamp", "mul", "product", "sigmoid", "softmax", "activation", "rank",
    "shape", "type", "blank", "other",
]  # fmt: skip
AxisMove: TypeAlias = Literal["flatten", "permute", "transpose"]


@dataclass(frozen=True)
class Operation:
    """What a call computes, as far as it matters to anyone."""

    kind: Kind = "other"
    """"layer": a convolution or linear module; "add" and "mul": of two nodes' results, neither
    scaled; "product": of matrices that are computed; "average": over positions; "channel_clamp":
    within bounds of each channel's own; "split": a tuple of parts; "identity": nothing, in eval
    mode; "relu": has `bounds`; "rank", "shape" and "type": nothing but that of a tensor is asked
    for, the device counting to the rank; "blank": a tensor like another one, without its values."""
    keeps_values: bool = False
    """Every value of the result is 0 or a value of its input, whose quantization parameters it so
    hands on."""
    moves_only: bool = False
    """It keeps values by moving or selecting them, whatever their type."""
    selects: bool = False
    """Of the values it keeps it may keep few: those of some channels."""
    keeps_channels: bool = False
    """It keeps values or averages them, each channel of the result made of that of the input."""
    makes_rows: bool = False
    """It makes (batch, values) of anything."""
    bounds: tuple[float, float] | None = None
    """(0, ∞) of a ReLU, (0, 6) of a ReLU6, (0, max) of a clamp."""
    limits: tuple[float, float] | None = None
    """What it clamps each value to, if these are numbers: `bounds`, and (-1, 1) of a Hardtanh."""
    is_elementwise: bool = False
    """It is a function of each value, and learned roundings look at its result."""
    activation: str | None = None
    """The kernels' name of an activation function that is no ReLU."""
    concatenated: tuple[fx.Node, ...] | None = None
    """The nodes that it concatenates."""
    padding: tuple[Any, ...] | None = None
    """How many zeros it adds on each side, as `F.pad` takes it."""
    averaged: tuple[tuple[int, ...], bool] | None = None
    """Of an average over whole dimensions: which they are, and whether they are kept."""
    moved_axes: tuple[AxisMove, tuple[int, ...]] | None = None
    """How it moves axes, and which, as the function of that name takes them (`graph.axes`)."""
    shape_of: fx.Node | None = None
    """The node of which, beside the one that it works on, it takes nothing but the shape."""


OTHER = Operation()
LAYER = Operation("layer")
BATCHNORM = Operation("batchnorm")


class Call(NamedTuple):
    """A call of a function, a method, or a module."""

    node: fx.Node
    module: nn.Module | None

    def option(self, position: int, name: str, default: Any = None) -> Any:
        """Return what the module keeps under `name`, or the argument of the call."""
        if self.module is None:
            return argument(self.node, position, name, default)
        return getattr(self.module, name, default)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of the call however it was passed."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


Row: TypeAlias = Operation | Callable[[Call], Operation]

_MOVED = Operation(keeps_values=True, moves_only=True)
_MADE_ROWS = Operation(keeps_values=True, moves_only=True, makes_rows=True)
_SPLIT = Operation("split", keeps_values=True, moves_only=True)
_SELECTED = Operation(keeps_values=True, moves_only=True, selects=True)
_MOVED_BY_CHANNEL = Operation(keeps_values=True, moves_only=True, keeps_channels=True)
_IDENTITY = Operation("identity", keeps_values=True, moves_only=True, keeps_channels=True)
_POOLED = Operation(keeps_values=True, keeps_channels=True)
_POOLED_2D = Operation("max_pool2d", keeps_values=True, keeps_channels=True)
_AVERAGED = Operation("average", keeps_channels=True)
_ELEMENTWISE = Operation("activation", is_elementwise=True)
_RELU = Operation("relu", bounds=(0.0, math.inf), limits=(0.0, math.inf))
_ADD = Operation("add")
_MUL = Operation("mul")
_PRODUCT = Operation("product")
_RANK = Operation("rank")
_SHAPE = Operation("shape")
_TYPE = Operation("type")
_BLANK = Operation("blank")
_ASKED = {
    **dict.fromkeys(("ndim", "device", "is_cuda", "is_meta"), _RANK),
    **dict.fromkeys(("shape",), _SHAPE),
    **dict.fromkeys(("dtype", "layout", "is_sparse", "is_quantized", "requires_grad"), _TYPE),
}
"""What attributes of a tensor tell."""
_ARITHMETIC = {
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
    operator.neg, operator.getitem, math.ceil, math.floor, max, min, round, int,
}  # fmt: skip


def _add(call: Call) -> Operation:
    operands = call.node.args
    if len(operands) != 2 or call.node.kwargs.get("alpha", 1) != 1:
        return OTHER
    return _ADD if all(isinstance(x, fx.Node) and not is_size(x) for x in operands) else OTHER


def _mul(call: Call) -> Operation:
    operands = call.node.args
    is_known = all(isinstance(x, fx.Node) and not is_size(x) for x in operands)
    return _MUL if is_known and len(operands) == 2 else OTHER


def _product(call: Call) -> Operation:
    operands = [each for each in call.node.all_input_nodes if each.op != "get_attr"]
    is_known = len(operands) == len(call.node.all_input_nodes) and not any(map(is_size, operands))
    return _PRODUCT if is_known and operands else OTHER


def _attention_weights(call: Call) -> Operation:
    query = call.option(1, "query")
    return Operation(shape_of=query if isinstance(query, fx.Node) else None)


def is_size(node: fx.Node) -> bool:
    """Say whether the node computes a number of the shape of a tensor."""
    while node.target in _ARITHMETIC and node.all_input_nodes:
        node = node.all_input_nodes[0]
    row = OPERATIONS.get(node.target) if node.op in ("call_function", "call_method") else None
    return (row(Call(node, None)) if row is _getattr else row) in (_RANK, _SHAPE)


def _concat(call: Call) -> Operation:
    tensors = call.option(0, "tensors")
    if not isinstance(tensors, (list, tuple)):
        return OTHER
    return Operation("concat", concatenated=tuple(x for x in tensors if isinstance(x, fx.Node)))


def _clamp(call: Call) -> Operation:
    return _within(call.option(1, "min"), call.option(2, "max"), OTHER)


def _hardtanh(call: Call) -> Operation:
    return _within(call.option(1, "min_val", -1.0), call.option(2, "max_val", 1.0), _ELEMENTWISE)


def _hardtanh_in_place(call: Call) -> Operation:
    return _within(call.option(1, "min_val", -1.0), call.option(2, "max_val", 1.0), OTHER)


def _within(low: Any, high: Any, otherwise: Operation) -> Operation:
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return otherwise
    limits = (float(low), float(high))
    if low == 0 < high:
        return Operation("relu", bounds=limits, limits=limits)
    return replace(otherwise, limits=limits)


def _gelu(call: Call) -> Operation:
    is_tanh = call.option(1, "approximate", "none") == "tanh"
    return _activation("gelu_tanh" if is_tanh else "gelu")


def _activation(name: str) -> Operation:
    return Operation("activation", is_elementwise=True, activation=name)


def _mean(call: Call) -> Operation:
    dims, keepdim = call.option(1, "dim"), call.option(2, "keepdim", False)
    dims = [dims] if isinstance(dims, int) else dims
    plain = isinstance(dims, (list, tuple)) and all(isinstance(each, int) for each in dims)
    return Operation("average", averaged=(tuple(dims), bool(keepdim)) if plain and dims else None)


def _adaptive_average_2d(call: Call) -> Operation:
    size = call.option(1, "output_size")
    is_one = size == 1 or (isinstance(size, (list, tuple)) and list(size) == [1, 1])
    averaged = ((-2, -1), True)
    return Operation("average", keeps_channels=True, averaged=averaged) if is_one else _AVERAGED


def _unless_indices(position: int, pooled: Operation) -> Callable[[Call], Operation]:
    return lambda call: OTHER if call.option(position, "return_indices", False) else pooled


def _zero_pad(call: Call) -> Operation:
    padding = tuple(call.option(1, "padding"))
    return Operation(keeps_values=True, keeps_channels=True, padding=padding)


def _pad(call: Call) -> Operation:
    sides = call.option(1, "pad")
    is_known = isinstance(sides, (list, tuple))
    constant = call.option(2, "mode", "constant") == "constant"
    if constant and call.option(3, "value") not in (None, 0):
        return OTHER
    return Operation(
        keeps_values=True,
        keeps_channels=is_known and len(sides) <= 4,
        padding=tuple(sides) if is_known and constant else None,
    )


def _interpolate(call: Call) -> Operation:
    is_nearest = str(call.option(3, "mode", "nearest")).startswith("nearest")
    return _MOVED_BY_CHANNEL if is_nearest else OTHER


def _in_eval(position: int, default: bool) -> Callable[[Call], Operation]:
    def read(call: Call) -> Operation:
        return _IDENTITY if call.option(position, "training", default) is False else OTHER

    return read


def _sequential(call: Call) -> Operation:
    return _IDENTITY if isinstance(call.module, nn.Sequential) and not call.module else OTHER


def _flatten(call: Call) -> Operation:
    ends = (call.option(1, "start_dim", 0), call.option(2, "end_dim", -1))
    return _with_axes(_MADE_ROWS if ends == (1, -1) else _MOVED, "flatten", ends)


def _transpose(call: Call) -> Operation:
    return _with_axes(_MOVED, "transpose", (call.option(1, "dim0"), call.option(2, "dim1")))


def _permute(call: Call) -> Operation:
    dims: Any = call.node.args[1:] or (call.node.kwargs.get("dims"),)
    return _with_axes(_MOVED, "permute", dims[0] if isinstance(dims[0], (tuple, list)) else dims)


def _with_axes(moved: Operation, how: AxisMove, axes: Sequence[Any]) -> Operation:
    is_known = all(isinstance(each, int) for each in axes)
    return replace(moved, moved_axes=(how, tuple(axes))) if is_known else moved


def _reshape(call: Call) -> Operation:
    sizes: Any = call.node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    return _MADE_ROWS if len(sizes) == 2 else _MOVED


def _getitem(call: Call) -> Operation:
    source, index = call.node.args
    if isinstance(source, fx.Node) and _splits(source):  # a tuple: one part of it, or several
        return _SELECTED if isinstance(index, int) else OTHER
    return OTHER if isinstance(index, (int, str, fx.Node)) else _SELECTED


def _splits(node: fx.Node) -> bool:
    is_call = node.op in ("call_function", "call_method")
    return is_call and OPERATIONS.get(node.target) is _SPLIT


def _shaped_like(call: Call) -> Operation:
    other = call.option(1, "other")
    return replace(_MOVED, shape_of=other if isinstance(other, fx.Node) else None)


def _getattr(call: Call) -> Operation:
    return _ASKED.get(str(call.node.args[1]), OTHER)


ROWS: tuple[tuple[Row, tuple[Any, ...]], ...] = (
    (_add, (operator.add, operator.iadd, torch.add, "add", "add_")),
    (_mul, (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")),
    (_product, (*MATMULS, torch.einsum)),
    (_attention_weights, (attention_weights_of,)),
    (Operation("softmax"), (nn.Softmax, F.softmax, torch.softmax, "softmax")),
    (_concat, (torch.cat, torch.concat, torch.concatenate)),
    (_SPLIT, (torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind")),
    # Activation functions. Of those in place, learned roundings look at what is before them.
    (_RELU, (nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")),
    (Operation("relu", bounds=(0.0, 6.0), limits=(0.0, 6.0)), (F.relu6,)),
    (_hardtanh, (nn.Hardtanh, nn.ReLU6, F.hardtanh)),
    (_hardtanh_in_place, (F.hardtanh_,)),
    (_clamp, (
        torch.clamp, torch.clamp_, torch.clip, torch.clamp_min, torch.clamp_min_, "clamp", "clamp_",
        "clip", "clip_", "clamp_min", "clamp_min_",
    )),
    (Operation("channel_clamp"), (ChannelClamp,)),
    (Operation("leaky_relu", is_elementwise=True), (nn.LeakyReLU, F.leaky_relu)),
    (Operation("leaky_relu"), (F.leaky_relu_,)),
    (_gelu, (nn.GELU, F.gelu)),
    (_activation("swish"), (nn.SiLU, F.silu)),
    (_activation("hardswish"), (nn.Hardswish, F.hardswish)),
    (_activation("tanh"), (nn.Tanh, F.tanh, torch.tanh, "tanh")),
    (Operation("sigmoid", is_elementwise=True), (
        nn.Sigmoid, F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_",
    )),
    (_ELEMENTWISE, ("tanh_",)),
    (_ELEMENTWISE, (nn.CELU, F.celu)),
    (_ELEMENTWISE, (nn.ELU, F.elu)),
    (_ELEMENTWISE, (nn.SELU, F.selu)),
    (_ELEMENTWISE, (nn.Hardshrink, F.hardshrink)),
    (_ELEMENTWISE, (nn.Hardsigmoid, F.hardsigmoid)),
    (_ELEMENTWISE, (nn.LogSigmoid, F.logsigmoid)),
    (_ELEMENTWISE, (nn.Mish, F.mish)),
    (_ELEMENTWISE, (nn.Softplus, F.softplus)),
    (_ELEMENTWISE, (nn.Softsign, F.softsign)),
    # Averages, and what takes the greatest value.
    (_AVERAGED, (nn.AvgPool1d, F.avg_pool1d)),
    (_AVERAGED, (nn.AvgPool2d, F.avg_pool2d)),
    (_AVERAGED, (nn.AvgPool3d, F.avg_pool3d)),
    (_AVERAGED, (nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d)),
    (_adaptive_average_2d, (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)),
    (_AVERAGED, (nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d)),
    (_mean, (torch.mean, "mean")),
    (_unless_indices(6, _POOLED), (nn.MaxPool1d, F.max_pool1d, torch.max_pool1d)),
    (_unless_indices(6, _POOLED_2D), (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)),
    (_unless_indices(6, _POOLED), (nn.MaxPool3d, F.max_pool3d, torch.max_pool3d)),
    (_unless_indices(2, _POOLED), (nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d)),
    (_unless_indices(2, _POOLED), (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d)),
    (_unless_indices(2, _POOLED), (nn.AdaptiveMaxPool3d, F.adaptive_max_pool3d)),
    (_MOVED, (torch.amax, "amax")),
    # What adds zeros, moves values, or does nothing.
    (_zero_pad, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)),
    (_pad, (F.pad,)),
    (_interpolate, (nn.Upsample, nn.UpsamplingNearest2d, F.interpolate)),
    (replace(_MOVED_BY_CHANNEL, moved_axes=("flatten", (0, 0))), ("contiguous",)),
    (_flatten, (nn.Flatten, torch.flatten, "flatten")),
    (_MOVED, (nn.Unflatten, "unflatten")),
    (_MOVED, (nn.PixelShuffle, F.pixel_shuffle)),
    (_MOVED, (nn.PixelUnshuffle, F.pixel_unshuffle)),
    (_MOVED, (nn.ChannelShuffle, F.channel_shuffle)),
    (_reshape, (torch.reshape, "reshape", "view")),
    (_permute, (torch.permute, "permute")),
    (_transpose, (torch.transpose, torch.swapaxes, "transpose", "swapaxes")),
    (_MOVED, (torch.squeeze, torch.unsqueeze, "squeeze", "unsqueeze")),
    (_SELECTED, (torch.narrow, "narrow")),
    (_MOVED, ("expand", "repeat")),
    (_shaped_like, ("reshape_as", "view_as", "expand_as")),
    (_getitem, (operator.getitem,)),
    (_IDENTITY, (nn.Identity,)),
    (_sequential, (nn.Sequential,)),
    (_in_eval(2, True), (
        nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout, F.dropout1d, F.dropout2d,
        F.dropout3d, torch.dropout,
    )),
    (_in_eval(2, False), (
        nn.AlphaDropout, nn.FeatureAlphaDropout, F.alpha_dropout, F.feature_alpha_dropout,
    )),
    (_in_eval(3, True), (STOCHASTIC_DEPTH, STOCHASTIC_DEPTH_FUNCTION)),
    # Questions.
    (_getattr, (getattr,)),
    (_RANK, ("dim", "ndimension", "get_device", torch.Tensor.dim)),
    (_SHAPE, ("size", "numel", "nelement", torch.numel, torch.Tensor.size, len)),
    (_SHAPE, (torch._assert, require)),
    (_TYPE, (
        "is_floating_point", "is_complex", "element_size", torch.is_floating_point,
        torch.is_complex,
    )),
    (_BLANK, (
        torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros", "new_ones", "new_full",
        "new_empty",
    )),
)  # fmt: skip
"""What is computed, and its spellings: types of modules, functions, names of methods.

What torchvision defines stands under its full name."""

OPERATIONS: dict[Any, Row] = {spelling: row for row, spellings in ROWS for spelling in spellings}
