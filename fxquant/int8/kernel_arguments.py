"""What `fxquant.int8.kernels` must be told to compute what a node computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxquant.graph.operations import argument, module_of

_ACTIVATIONS: dict[Any, str] = {
    nn.SiLU: "swish", F.silu: "swish",
    nn.Hardswish: "hardswish", F.hardswish: "hardswish",
    nn.Tanh: "tanh", torch.tanh: "tanh", "tanh": "tanh",
}  # fmt: skip
_BOTH = ("swish", "hardswish")
"""What the kernels of convolutions know; those of linear layers know all."""


def kernel_activation(gm: fx.GraphModule, node: fx.Node, layer: nn.Module) -> str | None:
    """Return the kernels' name of the activation function that `node` computes behind `layer`.

    None if it computes none, or one that the layer's kernel does not know.
    """
    module = module_of(gm, node)
    name = _ACTIVATIONS.get(node.target if module is None else type(module))
    if type(module) is nn.GELU:
        name = _gelu(module.approximate)
    if node.target is F.gelu:
        name = _gelu(node.kwargs.get("approximate", "none"))
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and name in _BOTH):
        return name
    return None


def _gelu(approximate: object) -> str:
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def max_pool2d_arguments(gm: fx.GraphModule, node: fx.Node) -> tuple[Any, ...] | None:
    """Return kernel size, stride, padding, dilation (two each) and ceil mode of a max-pool.

    None if the node is no max-pool over two dimensions, or returns indices too.
    """
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    module = module_of(gm, node)
    if type(module) is nn.MaxPool2d:
        values = [getattr(module, name) for name in names]
    elif node.target in (F.max_pool2d, torch.max_pool2d):
        defaults = (None, None, 0, 1, False, False)
        values = [
            argument(node, place, name, default)
            for place, (name, default) in enumerate(zip(names, defaults, strict=True), start=1)
        ]
    else:
        return None
    *geometry, ceil_mode, return_indices = values
    if not geometry[1]:  # None, or (): the kernel's size
        geometry[1] = geometry[0]
    return None if return_indices else (*(_pair(each) for each in geometry), ceil_mode)


def _pair(value: Any) -> list[int]:
    return [value] * 2 if isinstance(value, int) else list(value) * (3 - len(value))


def zero_padding(gm: fx.GraphModule, node: fx.Node) -> list[int] | None:
    """Return how many zeros a call that keeps values adds on each side, as `F.pad` takes it.

    None if it adds none.
    """
    module = module_of(gm, node)
    if isinstance(module, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)):
        return list(module.padding)
    if node.target is F.pad and argument(node, 2, "mode", "constant") == "constant":
        return list(argument(node, 1, "pad"))
    return None


def average_arguments(gm: fx.GraphModule, node: fx.Node) -> tuple[list[int], bool] | None:
    """Return the dimensions of a mean, and whether they are kept; None for other averages."""
    module = module_of(gm, node)
    if isinstance(module, nn.AdaptiveAvgPool2d) and _is_one(module.output_size):
        return [-2, -1], True
    if node.target is F.adaptive_avg_pool2d and _is_one(argument(node, 1, "output_size")):
        return [-2, -1], True
    if node.target in (torch.mean, "mean"):
        dims, keepdim = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
        dims = [dims] if isinstance(dims, int) else dims
        plain = isinstance(dims, (list, tuple)) and all(isinstance(each, int) for each in dims)
        return (list(dims), bool(keepdim)) if plain and dims else None
    return None


def _is_one(size: Any) -> bool:
    return size == 1 or (isinstance(size, (list, tuple)) and list(size) == [1, 1])
