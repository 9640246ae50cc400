"""Express a fake-quantized graph in PyTorch's standard quantize and dequantize operators.

Before:  quantizers_x = FakeQuantize(x); conv = QuantizedConv2d(quantizers_x)
After:   quantize = quantized_decomposed.quantize_per_tensor(x, 0.02, 114, 0, 255, uint8)
         dequantize = quantized_decomposed.dequantize_per_tensor(quantize, 0.02, 114, 0, 255, uint8)
         weight = quantized_decomposed.dequantize_per_channel(conv.weight_integers, …, int8)
         conv = F.conv2d(dequantize, weight, conv.bias, …)

The values are the same. This is the form that `torch.export` hands to inductor, ExecuTorch and
ONNX; weights stay the int8 tensors that they are. Of more than 8 bits there are no such operators:
those activations stay as they are, with the reason in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.ao.quantization.fx._decomposed
from torch import fx, nn
from torch.nn import functional as F

from fxquant.capture.graph_state import holds_numbers
from fxquant.graph.chains import Chain
from fxquant.graph.operations import data_input, module_of
from fxquant.graph.records import refuse
from fxquant.graph.submodules import Submodules, free_name
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.modules.layers import is_transposed, layer_type, num_groups
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.affine import Grid
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED

_CONVOLUTIONS: dict[type[nn.Module] | None, Any] = {
    nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d, nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}  # fmt: skip

for _operator in (
    torch.ops.quantized_decomposed.quantize_per_tensor.default,
    torch.ops.quantized_decomposed.dequantize_per_tensor.default,
):
    holds_numbers("scale", "zero_point")(_operator)


@dataclass(frozen=True, eq=False)
class ToQdq(Pass):
    """Express a fake-quantized graph in PyTorch's standard quantize and dequantize operators."""

    starts_from = CONVERTED

    per_channel: bool = True
    """Also activations with a scale for each channel; if not, they stay `FakeQuantize`s."""

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each `FakeQuantize` and each call of a `QuantizedLayer`."""
        submodules = Submodules(gm)
        quantizers = set()
        reads = _Reads(gm)
        modified = False
        for node in list(gm.graph.nodes):
            module = module_of(gm, node)
            reason = module.why_no_integers() if isinstance(module, FakeQuantize) else None
            if reason is not None:
                refuse(node, "stays simulated", reason)
            elif isinstance(module, FakeQuantize) and self._has_operator(module):
                _expose_quantizer(gm, node, module, submodules)
                quantizers.add(str(node.target))
                modified = True
            elif isinstance(module, QuantizedLayer):
                _expose_layer(reads, node, module)
                modified = True
        submodules.drop_unused(quantizers)
        return modified

    def _has_operator(self, quantizer: FakeQuantize) -> bool:
        """Say whether an operator rounds as `quantizer` does: not where channels' bits differ."""
        return quantizer.channel_max is None and (self.per_channel or quantizer.axis is None)


def _expose_quantizer(
    gm: fx.GraphModule, node: fx.Node, quantizer: FakeQuantize, submodules: Submodules
) -> None:
    operators = torch.ops.quantized_decomposed
    x, grid = data_input(node), quantizer.grid
    ends: Any = (grid.quant_min, grid.quant_max, _dtype(grid))
    with gm.graph.inserting_before(node):
        if quantizer.axis is None:
            affine = quantizer.affine.numbers()
            parameters = (affine.scale, affine.zero_point, *ends)
            q = gm.graph.call_function(operators.quantize_per_tensor.default, (x, *parameters))
            dq = gm.graph.call_function(operators.dequantize_per_tensor.default, (q, *parameters))
        else:
            # Axis 1: channels have scales of their own in batches of feature maps only.
            per_channel = (*_channel_parameters(gm, node, quantizer, submodules), 1, *ends)
            q = gm.graph.call_function(operators.quantize_per_channel.default, (x, *per_channel))
            dq = gm.graph.call_function(operators.dequantize_per_channel.default, (q, *per_channel))
    Chain.behind(gm, node).replace(dq, dq.name)


def _channel_parameters(
    gm: fx.GraphModule, node: fx.Node, quantizer: FakeQuantize, submodules: Submodules
) -> list[fx.Node]:
    """Return nodes that read the scales and zero-points, kept under a new name."""
    holder = nn.Module()
    holder.register_buffer("scale", quantizer.scale)
    holder.register_buffer("zero_point", quantizer.zero_point)
    name = free_name(gm, f"constants.{node.name}")
    submodules.put(name, holder)
    return [gm.graph.get_attr(f"{name}.{each}") for each in ("scale", "zero_point")]


def _dtype(grid: Grid) -> torch.dtype:
    return torch.int8 if grid.quant_min < 0 else torch.uint8


class _Reads(dict[str, fx.Node]):
    """One node for each tensor of layers, however often they are called: as unpickling has it."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__()
        self.gm = gm

    def __missing__(self, target: str) -> fx.Node:
        self[target] = self.gm.graph.get_attr(target)
        return self[target]


def _expose_layer(reads: _Reads, node: fx.Node, layer: QuantizedLayer) -> None:
    gm, x, target = reads.gm, data_input(node), str(node.target)
    with gm.graph.inserting_before(node):
        weight = _weight(reads, target, layer)
        known: Any = layer
        bias = None if known.bias is None else reads[f"{target}.bias"]
        function, geometry = _function(known)
        if function is not F.linear and not is_transposed(known) and known.padding_mode != "zeros":
            sides = tuple(known._reversed_padding_repeated_twice)
            x = gm.graph.call_function(F.pad, (x, sides, known.padding_mode))
        exposed = gm.graph.call_function(function, (x, weight, bias, *geometry))
    Chain.behind(gm, node).replace(exposed)


def _weight(reads: _Reads, target: str, layer: QuantizedLayer) -> fx.Node:
    """Return a node that computes the layer's weight from its integers."""
    gm, operators = reads.gm, torch.ops.quantized_decomposed
    known: Any = layer
    grid = Grid.of(layer.weight_spec.bits, signed=True)
    ends = (grid.quant_min, grid.quant_max, torch.int8)
    integers = reads[f"{target}.weight_integers"]
    if layer.weight_scale.dim() == 0:
        affine = layer.weight_affine.numbers()
        per_tensor = (affine.scale, affine.zero_point, *ends)
        return gm.graph.call_function(
            operators.dequantize_per_tensor.default, (integers, *per_tensor)
        )
    scale = reads[f"{target}.weight_scale"]
    zero_point = reads[f"{target}.weight_zero_point"]
    groups = num_groups(known) if is_transposed(known) else 1
    if groups > 1:  # outputs lie along two axes
        integers = _swapped_within_groups(integers, groups)
    axis = 1 if is_transposed(known) and groups == 1 else 0
    per_channel = (integers, scale, zero_point, axis, *ends)
    weight = gm.graph.call_function(operators.dequantize_per_channel.default, per_channel)
    return _swapped_within_groups(weight, groups) if groups > 1 else weight


def _swapped_within_groups(weight: fx.Node, groups: int) -> fx.Node:
    """Return nodes from (in, out/groups, *kernel) to (out, in/groups, *kernel), or back."""
    graph = weight.graph
    grouped = graph.call_function(torch.unflatten, (weight, 0, (groups, -1)))
    swapped = graph.call_function(torch.transpose, (grouped, 1, 2))
    return graph.call_function(torch.flatten, (swapped, 0, 1))


def _function(layer: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the function that computes the layer, and its arguments behind the bias."""
    kind = layer_type(layer)
    if kind is nn.Linear:
        return F.linear, ()
    if is_transposed(layer):
        geometry = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return _CONVOLUTIONS[kind], geometry
    padding = layer.padding if layer.padding_mode == "zeros" else 0
    return _CONVOLUTIONS[kind], (layer.stride, padding, layer.dilation, layer.groups)
