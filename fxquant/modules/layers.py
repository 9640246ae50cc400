"""Facts about the layers that are quantized: convolutions, transposed convolutions, linear layers.

A transposed convolution keeps its weight as (in, out/groups, *kernel), all others as
(out, in/groups, *kernel). The functions here hide that, groups included.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVS, *TRANSPOSED_CONVS, nn.Linear)
Layer = (
    nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
    | nn.Linear
)


def layer_type(module: nn.Module | None) -> type[nn.Module] | None:
    """Return which of `LAYERS` computes what `module` computes, or None.

    A subclass counts if it left `forward` and its parts as they were.
    """
    for kind in LAYERS:
        if isinstance(module, kind):
            own = type(module)
            same = own.forward is kind.forward and "forward" not in vars(module)
            parts = [getattr(each, "_conv_forward", None) for each in (own, kind)]
            return kind if same and parts[0] is parts[1] else None
    return None


def as_layer(module: nn.Module | None) -> Layer:
    """Return `module`, which is known to be one of `LAYERS` or of their subclasses."""
    assert isinstance(module, LAYERS), type(module)
    return module


def is_transposed(layer: Layer) -> bool:
    """Say whether the weight's first axis is the input's channels."""
    return isinstance(layer, TRANSPOSED_CONVS)


def num_outputs(layer: Layer) -> int:
    """Return the number of output channels."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def num_inputs(layer: Layer) -> int:
    """Return the number of input channels."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def num_groups(layer: Layer) -> int:
    """Return the number of groups, 1 for a linear layer."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def channel_axis(layer: Layer) -> int:
    """Return the axis of channels in the layer's input and output, counted from the end."""
    return -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim()


def output_rows(layer: Layer, weight: Tensor) -> Tensor:
    """Return `weight`, shaped as the layer's own, as (out, values of that output)."""
    if not is_transposed(layer):
        return weight.flatten(1)
    groups, (inputs, outputs) = num_groups(layer), weight.shape[:2]
    grouped = weight.reshape(groups, inputs // groups, outputs, -1)
    return grouped.transpose(1, 2).reshape(groups * outputs, -1)


def input_rows(layer: Layer, weight: Tensor) -> Tensor:
    """Return `weight`, shaped as the layer's own, as (in, values that meet that input)."""
    if is_transposed(layer):
        return weight.flatten(1)
    groups, (outputs, inputs) = num_groups(layer), weight.shape[:2]
    grouped = weight.reshape(groups, outputs // groups, inputs, -1)
    return grouped.transpose(1, 2).reshape(groups * inputs, -1)


def per_output(layer: Layer, values: Tensor, weight: Tensor) -> Tensor:
    """Return `values` (out,) or () shaped to broadcast against `weight`."""
    if values.dim() == 0:
        return values
    if is_transposed(layer):
        return _across_groups(values, num_groups(layer), weight)
    return values.reshape(-1, *[1] * (weight.dim() - 1))


def per_input(layer: Layer, values: Tensor, weight: Tensor) -> Tensor:
    """Return `values` (in,) shaped to broadcast against `weight`."""
    if is_transposed(layer):
        return values.reshape(-1, *[1] * (weight.dim() - 1))
    return _across_groups(values, num_groups(layer), weight)


def _across_groups(values: Tensor, groups: int, weight: Tensor) -> Tensor:
    """Return `values` along the weight's second axis, which counts within a group."""
    rows = values.reshape(groups, 1, -1)  # (groups, 1, per group)
    if groups > 1:
        rows = rows.expand(groups, weight.shape[0] // groups, -1).reshape(weight.shape[0], -1)
    return rows.reshape(rows.shape[-2] if groups > 1 else 1, -1, *[1] * (weight.dim() - 2))


FUNCTIONAL_LAYERS = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    F.linear,
)  # fmt: skip


MATMULS = (operator.matmul, torch.matmul, torch.mm, torch.bmm, "matmul", "mm", "bmm")
ADDMMS = (torch.addmm, "addmm")
"""Products of matrices, in all spellings: functions, and names of methods."""


def is_functional_layer(node: fx.Node) -> bool:
    """Say whether the node calls a convolution or linear function, or multiplies by a parameter."""
    if node.target not in (*MATMULS, *ADDMMS, torch.einsum):
        return node.op == "call_function" and node.target in FUNCTIONAL_LAYERS
    factors = [(each, *each.all_input_nodes) for each in node.all_input_nodes]  # or of `w.t()`
    return any(each[-1].op == "get_attr" for each in factors)
