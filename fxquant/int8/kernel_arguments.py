"""What `fxquant.int8.kernels` must be told to compute what a node computes."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxquant.graph.operation_table import Call
from fxquant.graph.operations import module_of, operation_of

_BOTH = ("swish", "hardswish")
"""What the kernels of convolutions know; those of linear layers know all."""


def kernel_activation(gm: fx.GraphModule, node: fx.Node, layer: nn.Module) -> str | None:
    """Return the kernels' name of the activation function that `node` computes behind `layer`.

    None if it computes none, or one that the layer's kernel does not know.
    """
    name = operation_of(gm, node).activation
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and name in _BOTH):
        return name
    return None


def max_pool2d_arguments(gm: fx.GraphModule, node: fx.Node) -> tuple[Any, ...] | None:
    """Return kernel size, stride, padding, dilation (two each) and ceil mode of a max-pool.

    None if the node is no max-pool over two dimensions, or returns indices too.
    """
    if operation_of(gm, node).kind != "max_pool2d":
        return None
    call = Call(node, module_of(gm, node))
    size = call.option(1, "kernel_size")
    stride = call.option(2, "stride") or size  # None, or (): the kernel's size
    geometry = (size, stride, call.option(3, "padding", 0), call.option(4, "dilation", 1))
    return (*(_pair(each) for each in geometry), call.option(5, "ceil_mode", False))


def _pair(value: Any) -> list[int]:
    return [value] * 2 if isinstance(value, int) else list(value) * (3 - len(value))
