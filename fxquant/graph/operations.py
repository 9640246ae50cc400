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

from fxquant.modules.batchnorm import is_batchnorm_module
from fxquant.modules.layers import layer_type

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
SPLITS = (torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind")


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
    return calls(gm, node, _AVERAGES)


def is_split(node: fx.Node) -> bool:
    """Say whether the node's result is a tuple of parts of its input."""
    return node.op in ("call_function", "call_method") and node.target in SPLITS


def reads_shape(node: fx.Node) -> bool:
    """Say whether the node asks a tensor for nothing but its shape."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "ndimension", "numel", "nelement")
    return node.target is getattr and node.args[1] in ("shape", "ndim")


def calls(gm: fx.GraphModule, node: fx.Node, targets: tuple[Any, ...]) -> bool:
    """Say whether the node calls one of `targets`: types of modules, functions, methods' names."""
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
