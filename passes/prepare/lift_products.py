"""Turn products with a matrix that is an attribute into calls of `F.linear`.

Before:  w = self.w; y = x @ w                          # w: (in, out)
After:   w = self.w; y = F.linear(x, w)                 # w: (out, in), another parameter

Known are `@`, `matmul`, `mm`, `addmm` with a bias, and `einsum` whose letters say the same, such
as "bnc,dc->bnd". What multiplies two activations is no layer, and a weight that does not meet the
last axis of an activation makes none. `LiftFunctionals` makes modules of the calls.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxquant.graph.operation_table import argument
from fxquant.graph.records import refuse
from fxquant.graph.submodules import Submodules, attribute_of, free_place
from fxquant.modules.layers import ADDMMS, MATMULS
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED

_LEFT = "its weight stands before its input"


@dataclass(frozen=True, eq=False)
class LiftProducts(Pass):
    """Turn products with a matrix that is an attribute into calls of `F.linear`."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each such product; refuse those of a weight that are no linear layer."""
        submodules = Submodules(gm)
        turned: dict[str, str] = {}
        weights: list[fx.Node] = []
        for node in list(gm.graph.nodes):
            product = _product(gm, node)
            if isinstance(product, str):
                refuse(node, "left in float", product)
            elif product is not None:
                weights.append(product.weight)
                _replace(gm, node, product, submodules, turned)
        submodules.erase_unread(weights)
        return bool(weights)


@dataclass(frozen=True)
class _Product:
    """x · Wᵀ + b."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None = None
    is_turned: bool = True
    """The weight is (in, out), not (out, in) as that of a linear layer."""


def _product(gm: fx.GraphModule, node: fx.Node) -> _Product | str | None:
    """Return what `node` multiplies, why that is no linear layer, or None if it is no such call."""
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in MATMULS:
        other = node.kwargs.get("mat2", argument(node, 1, "other"))
        return _of_two(gm, argument(node, 0, "input"), other)
    if node.target in ADDMMS:
        return _addmm(gm, node)
    return _einsum(gm, node) if node.target is torch.einsum else None


def _of_two(gm: fx.GraphModule, x: Any, weight: Any) -> _Product | str | None:
    if _weight(gm, x) is not None:
        return _LEFT
    tensor = _weight(gm, weight)
    if tensor is None or not isinstance(x, fx.Node):
        return None
    if tensor.dim() != 2 or not tensor.is_floating_point():
        return f"its weight is {tensor.dim()}-D, {tensor.dtype}"
    return _Product(x, weight)


def _addmm(gm: fx.GraphModule, node: fx.Node) -> _Product | str | None:
    product = _of_two(gm, argument(node, 1, "mat1"), argument(node, 2, "mat2"))
    if not isinstance(product, _Product):
        return product
    if (argument(node, 3, "beta", 1), argument(node, 4, "alpha", 1)) != (1, 1):
        return "it scales its product or its bias"
    bias = argument(node, 0, "input")
    values, outputs = _weight(gm, bias), attribute_of(gm, product.weight).shape[1]
    if values is None or tuple(values.shape) != (outputs,):
        return "its bias is no vector of parameters"
    return _Product(product.x, product.weight, bias)


def _einsum(gm: fx.GraphModule, node: fx.Node) -> _Product | str | None:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    constant = [_weight(gm, each) is not None for each in operands]
    if not isinstance(equation, str) or not any(constant):
        return None
    if len(operands) != 2 or all(constant):
        return f"{equation!r} multiplies {len(operands)} tensors"
    letters, result = _letters(equation)
    (weight, x), (mine, theirs) = operands, letters
    if constant[1]:
        weight, x, mine, theirs = x, weight, theirs, mine
    product = _of_two(gm, x, weight)
    if not isinstance(product, _Product):
        return product
    for inside, outside in (tuple(mine), tuple(reversed(mine))):
        lead = theirs.removesuffix(inside)
        is_last = theirs == lead + inside and result == lead + outside
        if is_last and _are_all_different(theirs + outside):
            return _Product(product.x, product.weight, is_turned=mine == inside + outside)
    return f"{equation!r} is no product along the last axis"


def _letters(equation: str) -> tuple[list[str], str]:
    """Return the letters of the operands, and of the result."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:  # those that stand once, in their order; what the dots stand for is first
        counts = Counter(left.replace(",", "").replace(".", ""))
        once = "".join(sorted(each for each, count in counts.items() if count == 1))
        right = ("..." if "..." in left else "") + once
    return left.split(","), right


def _are_all_different(letters: str) -> bool:
    letters = letters.replace("...", "")
    return len(set(letters)) == len(letters)


def _weight(gm: fx.GraphModule, node: Any) -> Tensor | None:
    value = attribute_of(gm, node) if isinstance(node, fx.Node) and node.op == "get_attr" else None
    return value if isinstance(value, Tensor) else None


def _replace(
    gm: fx.GraphModule,
    node: fx.Node,
    product: _Product,
    submodules: Submodules,
    turned: dict[str, str],
) -> None:
    target = str(product.weight.target)
    with gm.graph.inserting_before(node):
        weight = product.weight
        if product.is_turned:
            if target not in turned:
                turned[target] = free_place(gm, target)
                submodules.put_tensor(turned[target], _turned(attribute_of(gm, weight)))
            weight = gm.graph.get_attr(turned[target])
        linear = gm.graph.call_function(F.linear, (product.x, weight, product.bias))
    linear.meta.update(node.meta)
    node.replace_all_uses_with(linear)
    gm.graph.erase_node(node)


def _turned(weight: Tensor) -> Tensor:
    turned = weight.detach().t().contiguous()  # a file keeps no strides, which decide last bits
    if not isinstance(weight, nn.Parameter):
        return turned
    return nn.Parameter(turned, requires_grad=weight.requires_grad)
