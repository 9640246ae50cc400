"""How great values can be at most, from what computes them: where that is known, none is NaN.

A layer's integers are bounded, and so is its result: |y| ≤ s_x · 255 · Σ |s_w · w| + |b|. What
follows is taken in intervals: sums add, products multiply, a layer norm forgets what came before.
The model's input, and what some unknown call returns, may be anything, until a step looks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxquant.graph import argument, data_input, is_overridden, module_of, operation_of
from fxquant.int8 import Int8Layer, kernels
from fxquant.numerics import tensors_in

_GREATEST = 1e15
"""The square of what is greater, and a sum of many, may overflow."""
_NO_GREATER = ("gelu", "gelu_tanh", "swish", "hardswish", "tanh")
"""Activation functions with |f(x)| ≤ |x|."""


class Bounds:
    """The greatest magnitude that each node's result can have.

    Args:
        gm: a lowered graph, whose nodes are visited in their order.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._known: dict[fx.Node, float | None] = {}
        self.tensors: list[Tensor] = []
        """Scales of weights, biases and so on, from which the bounds found so far follow."""

    def visit(self, node: fx.Node, value: Any) -> None:
        """Find the bound of a node's result, such as `value`."""
        self._known[node], tensors = None, tensors_in(value)
        if tensors and all(each.dtype == torch.float32 and each.numel() for each in tensors):
            bound = self._bound(node) if node.op != "get_attr" else self._of_tensors(*tensors)
            self._known[node] = bound if bound is not None and bound < _GREATEST else None

    def are_numbers(self, node: fx.Node) -> bool:
        """Say whether no value of a node's result can be NaN or infinite."""
        return self._known[node] is not None

    def require(self, node: fx.Node, bound: float) -> None:
        """Take a node's result for bounded, as steps make sure that it is."""
        self._known[node] = bound

    def forget(self) -> None:
        """Take all results for unbounded: something was changed in its place."""
        self._known = dict.fromkeys(self._known)

    def _bound(self, node: fx.Node) -> float | None:
        module, operation = module_of(self._gm, node), operation_of(self._gm, node)
        if isinstance(module, Int8Layer):
            return self._of_layer(module)
        if node.target is kernels.dequantize:
            return 255 * abs(float(argument(node, 1, "scale")))
        if node.target is F.scaled_dot_product_attention or _is_layer_norm(node, module):
            return self._of_attention(node) if module is None else self._of_norm(node, module)
        if operation.concatenated is not None:
            return self._greatest(*operation.concatenated)
        source = data_input(node)
        if source is None:
            return None
        if operation.kind in ("add", "mul"):
            bounds = [self._known[each] for each in node.args if isinstance(each, fx.Node)]
            known = [each for each in bounds if each is not None]
            if len(known) < len(bounds):
                return None
            return sum(known) if operation.kind == "add" else math.prod(known)
        if operation.kind in ("sigmoid", "softmax"):
            return None if self._known[source] is None else 1.0
        is_no_greater = operation.keeps_values or operation.kind == "relu"
        if operation.kind == "average":
            divisor = getattr(module, "divisor_override", argument(node, 6, "divisor_override"))
            is_no_greater = divisor is None
        if is_no_greater or operation.activation in _NO_GREATER:
            return self._greatest(source)
        return None

    def _greatest(self, *nodes: fx.Node) -> float | None:
        bounds = [self._known[node] for node in nodes]
        found = [each for each in bounds if each is not None]
        return max(found) if found and len(found) == len(bounds) else None

    def _of_tensors(self, *tensors: Tensor) -> float:
        """Return the greatest magnitude of what no input changes; of NaN, infinity."""
        self.tensors += tensors
        found = [each.detach().abs().max().item() for each in tensors if each.numel()]
        return math.inf if any(map(math.isnan, found)) else max(found, default=0.0)

    def _of_norm(self, node: fx.Node, module: nn.Module) -> float | None:
        """Return √n · |γ| + |β|: n values of variance 1 are no greater than √n."""
        assert isinstance(module, nn.LayerNorm)
        if self._greatest(*node.all_input_nodes) is None or module.eps < 1e-12:
            return None
        root, parts = math.sqrt(math.prod(module.normalized_shape)), (module.weight, module.bias)
        weight, bias = (
            default if each is None else self._of_tensors(each)
            for each, default in zip(parts, (1.0, 0.0), strict=True)
        )
        return root * weight + bias

    def _of_layer(self, layer: Int8Layer) -> float:
        """Return the bound of a layer's real result, behind whatever activation function."""
        sums = layer.weight_integers.flatten(1).short().abs().sum(1, dtype=torch.float64)
        scale, bias = layer.weight_scale, layer.bias
        added = 0.0 if bias is None else self._of_tensors(bias)
        return layer.input.scale * 255 * sums.max().item() * self._of_tensors(scale) + added

    def _of_attention(self, node: fx.Node) -> float | None:
        """Return the bound of the values, of which attention takes averages."""
        nodes = [
            argument(node, place, name) for place, name in enumerate(("query", "key", "value"))
        ]
        options = [argument(node, 3, "attn_mask"), argument(node, 6, "scale")]
        if options != [None, None] or not all(isinstance(each, fx.Node) for each in nodes):
            return None
        return self._known[nodes[2]] if self._greatest(*nodes) is not None else None


def _is_layer_norm(node: fx.Node, module: nn.Module | None) -> bool:
    is_plain = type(module) is nn.LayerNorm and not is_overridden(module)
    return is_plain and len(node.all_input_nodes) == 1
