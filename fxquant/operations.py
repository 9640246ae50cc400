"""What a node of an FX graph computes, whichever way it is written.

A ReLU may be a module, a function or a method; an addition `a + b`, `a += b` or `torch.add`. The
passes ask here and never look at targets themselves.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxquant.batchnorm import is_batchnorm_module
from fxquant.layers import layer_type

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_CONCATS = (torch.cat, torch.concat, torch.concatenate)
_AVERAGES: tuple[Any, ...] = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    torch.mean,
    "mean",
)
_FUNCTIONAL_LAYERS = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    F.linear,
)  # fmt: skip
_CHANNEL_WISE = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.Identity, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
    nn.UpsamplingNearest2d, nn.Upsample, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_SPLITS = (torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind")
_COMPARES_OR_PADS: tuple[Any, ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, F.max_pool1d, F.max_pool2d,
    F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
)  # fmt: skip
_PASSTHROUGH: tuple[Any, ...] = (
    *_COMPARES_OR_PADS,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.UpsamplingNearest2d,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    F.channel_shuffle,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.amax,
    torch.narrow,
    *_SPLITS,
    "amax",
    "contiguous",
    "expand",
    "flatten",
    "narrow",
    "permute",
    "repeat",
    "reshape",
    "squeeze",
    "swapaxes",
    "transpose",
    "unflatten",
    "unsqueeze",
    "view",
)


def module_of(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that `node` calls, or None if it calls none."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of the call however it was passed."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def data_input(node: fx.Node) -> fx.Node | None:
    """Return the node whose tensor the call works on: its first argument."""
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))
    return first if isinstance(first, fx.Node) else None


def is_layer(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node calls a convolution or linear module."""
    return layer_type(module_of(gm, node)) is not None


def is_functional_layer(node: fx.Node) -> bool:
    """Say whether the node calls a convolution or linear function."""
    return node.op == "call_function" and node.target in _FUNCTIONAL_LAYERS


def is_batchnorm(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node calls a batch-norm module, frozen or not."""
    return is_batchnorm_module(module_of(gm, node))


def is_add(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node adds two nodes' results, neither scaled."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDS:
        return False
    both_nodes = len(node.args) == 2 and all(isinstance(each, fx.Node) for each in node.args)
    return both_nodes and bool(node.kwargs.get("alpha", 1) == 1)


def concat_inputs(node: fx.Node) -> list[fx.Node] | None:
    """Return the nodes that `node` concatenates, or None if it does not concatenate."""
    if node.op != "call_function" or node.target not in _CONCATS:
        return None
    tensors = argument(node, 0, "tensors")
    if not isinstance(tensors, (list, tuple)):
        return None
    return [tensor for tensor in tensors if isinstance(tensor, fx.Node)]


def is_average(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node averages over positions, which int8 kernels do in integers."""
    return _calls(gm, node, _AVERAGES)


def keeps_values(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether every value of the node's result is 0 or a value of its input.

    Such a call hands its input's quantization parameters on.
    """
    if node.op == "call_function" and node.target is operator.getitem:
        source, index = node.args
        if isinstance(source, fx.Node) and is_split(source):
            return isinstance(index, int)
        return not isinstance(index, (int, str, fx.Node))
    if node.op == "call_function" and node.target is F.pad:
        constant = argument(node, 2, "mode", "constant") == "constant"
        return not constant or argument(node, 3, "value") in (None, 0)
    if node.op == "call_function" and node.target is F.interpolate:
        return str(argument(node, 3, "mode", "nearest")).startswith("nearest")
    module = module_of(gm, node)
    if getattr(module, "return_indices", False):
        return False
    if isinstance(module, nn.Upsample):
        return str(module.mode).startswith("nearest")
    if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
        return not module.training
    if node.target is F.dropout:
        return argument(node, 2, "training", True) is False
    return _calls(gm, node, _PASSTHROUGH)


def moves_values(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a call that keeps values only moves or selects them, whatever their type."""
    return (
        keeps_values(gm, node)
        and node.target is not F.pad
        and not _calls(gm, node, _COMPARES_OR_PADS)
    )


def is_split(node: fx.Node) -> bool:
    """Say whether the node's result is a tuple of parts of its input."""
    return node.op in ("call_function", "call_method") and node.target in _SPLITS


def reads_shape(node: fx.Node) -> bool:
    """Say whether the node asks a tensor for nothing but its shape."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "ndimension", "numel", "nelement")
    return node.target is getattr and node.args[1] in ("shape", "ndim")


def keeps_channels(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether each channel of the result is made of the same channel of the input alone.

    Of the calls that keep values or average them; not reshapes, slices, or padding of channels.
    """
    if is_average(gm, node):
        return node.target not in (torch.mean, "mean")
    if not keeps_values(gm, node):
        return False
    if node.target is F.pad:
        return len(argument(node, 1, "pad")) <= 4
    if node.target in (F.interpolate, F.dropout, "contiguous"):
        return True
    module = module_of(gm, node)
    if module is not None:
        return isinstance(module, _CHANNEL_WISE)
    return "max_pool" in str(getattr(node.target, "__name__", ""))


def _calls(gm: fx.GraphModule, node: fx.Node, targets: tuple[Any, ...]) -> bool:
    module = module_of(gm, node)
    if module is not None:
        return type(module) in targets
    return node.op in ("call_function", "call_method") and node.target in targets


def relu_bounds(gm: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """Return (0, ∞) for a ReLU, (0, 6) for a ReLU6, (0, max) for a clamp; None for anything else.

    Modules, functions and methods are known: ReLU, ReLU6, Hardtanh(0, ·), clamp(min=0), clamp_min.
    """
    module = module_of(gm, node)
    if type(module) is nn.ReLU:
        return 0.0, math.inf
    if type(module) in (nn.ReLU6, nn.Hardtanh):
        return _bounds(module.min_val, module.max_val)  # type: ignore[union-attr]
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in (torch.relu, torch.relu_, F.relu, "relu", "relu_"):
        return 0.0, math.inf
    if node.target is F.relu6:
        return 0.0, 6.0
    if node.target in (F.hardtanh, F.hardtanh_):
        return _bounds(argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0))
    if node.target in (torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"):
        return _bounds(argument(node, 1, "min"), None)
    if node.target in (torch.clamp, torch.clamp_, torch.clip, "clamp", "clamp_", "clip", "clip_"):
        return _bounds(argument(node, 1, "min"), argument(node, 2, "max"))
    return None


def is_leaky_relu(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node is linear on either side of 0, with two slopes."""
    module = module_of(gm, node)
    return type(module) is nn.LeakyReLU or node.target in (F.leaky_relu, F.leaky_relu_)


def _bounds(low: Any, high: Any) -> tuple[float, float] | None:
    high = math.inf if high is None else high
    is_relu = isinstance(low, (int, float)) and low == 0 and isinstance(high, (int, float))
    return (0.0, float(high)) if is_relu and high > 0 else None
