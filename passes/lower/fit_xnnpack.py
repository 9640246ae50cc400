"""Write a graph of standard operators so that XNNPACK, in ExecuTorch, computes what it says.

Its partitioner looks for integers between neighbours: dequantize, call, quantize. What differs from
that it takes and computes wrongly, without a word, or does not load (ExecuTorch 1.5):

    in the graph                                what becomes of it           what is written instead
    a float call and a layer read one           not loaded                   one for each reader
      dequantize operator
    a layer is called twice                     the bias in steps of the     a copy of the bias for
                                                first call's input           each call
    weights that are said to lie in [-8, 7]     packed: wrong for an odd     [-128, 127], where they
                                                number of inputs             lie too
    clamp(0, 6) behind a layer                  wrong: ReLU and hardtanh     hardtanh(0, 6)
                                                alone are taken in
    a layer reads a padding that is not zeros   wrong                        quantized again behind
                                                                             the padding

The values are the same. What is changed in place and read again is left to all its readers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import fx, nn
from torch.nn import functional as F

from fxquant.graph.chains import Chain
from fxquant.graph.mutations import changed_while_read, is_inplace
from fxquant.graph.operations import data_input, relu_bounds, source_of
from fxquant.graph.submodules import Submodules, free_name
from fxquant.numerics.affine import Grid
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import STANDARD

_LAYERS = (
    *(F.linear, F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)

_CLAMPS = ("clamp", "clip")
_NAMES = {
    (False, False): F.relu,
    (False, True): F.relu_,
    (True, False): F.hardtanh,
    (True, True): F.hardtanh_,
}
"""By whether there is an upper bound, and whether others see the operand change."""


@dataclass(frozen=True, eq=False)
class FitXnnpack(Pass):
    """Share nothing between readers, and name things as XNNPACK's partitioner looks for them."""

    starts_from = STANDARD

    def run(self, gm: fx.GraphModule) -> bool:
        """Change a graph that `ToQdq` wrote."""
        changes = (_name_clamps, _quantize_paddings, _widen_weights, _part_biases, _part_readers)
        return any([change(gm) for change in changes])


def _name_clamps(gm: fx.GraphModule) -> bool:
    modified, changed = False, changed_while_read(gm)
    for node in list(gm.graph.nodes):
        bounds = relu_bounds(gm, node)
        name = str(getattr(node.target, "__name__", node.target))
        if bounds is None or node.op == "call_module" or not name.startswith(_CLAMPS):
            continue
        has_top, is_seen = not math.isinf(bounds[1]), source_of(node) in changed
        function: Any = _NAMES[has_top, is_seen and is_inplace(gm, node)]
        arguments: tuple[Any, ...] = (source_of(node), *(bounds if has_top else ()))
        with gm.graph.inserting_before(node):
            named = gm.graph.call_function(function, arguments)
        Chain.behind(gm, node).replace(named)
        modified = True
    return modified


def _quantize_paddings(gm: fx.GraphModule) -> bool:
    operators = torch.ops.quantized_decomposed
    modified = False
    for node in gm.graph.find_nodes(op="call_function", target=F.pad):
        source = data_input(node)
        if source is None or source.target is not operators.dequantize_per_tensor.default:
            continue
        if any(reader.target in _LAYERS for reader in node.users):
            parameters = source.args[1:]
            with gm.graph.inserting_after(node):
                q = gm.graph.call_function(operators.quantize_per_tensor.default)
            with gm.graph.inserting_after(q):
                dq = gm.graph.call_function(operators.dequantize_per_tensor.default)
            node.replace_all_uses_with(dq)
            q.args, dq.args = (node, *parameters), (q, *parameters)
            modified = True
    return modified


def _widen_weights(gm: fx.GraphModule) -> bool:
    operators = torch.ops.quantized_decomposed
    ends = Grid.of(8, signed=True)
    modified = False
    for target in (
        operators.dequantize_per_channel.default,
        operators.dequantize_per_tensor.default,
    ):
        for node in gm.graph.find_nodes(op="call_function", target=target):
            *others, low, high, dtype = node.args
            is_narrow = (low, high) != (ends.quant_min, ends.quant_max)
            if is_narrow and source_of(node).op == "get_attr":
                node.args = (*others, ends.quant_min, ends.quant_max, dtype)
                modified = True
    return modified


def _part_biases(gm: fx.GraphModule) -> bool:
    submodules, seen = Submodules(gm), set()
    modified = False
    for layer in list(_layers(gm)):
        bias = layer.args[2]
        if not isinstance(bias, fx.Node):
            continue
        if bias.target in seen:
            name = f"{free_name(gm, f'constants.{layer.name}')}.bias"
            submodules.put(name.rpartition(".")[0], nn.Module())
            owner, _, attribute = str(bias.target).rpartition(".")
            value = getattr(gm.get_submodule(owner), attribute)
            submodules.put_tensor(name, value.detach().clone())
            with gm.graph.inserting_before(layer):
                layer.replace_input_with(bias, gm.graph.get_attr(name))
            submodules.erase_unread([bias])
            modified = True
        seen.add(bias.target)
    return modified


def _part_readers(gm: fx.GraphModule) -> bool:
    target = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    modified, changed = False, changed_while_read(gm)
    for node in gm.graph.find_nodes(op="call_function", target=target):
        if node in changed:  # another one would be without the change
            continue
        for reader in list(node.users)[1:]:
            with gm.graph.inserting_before(reader):
                reader.replace_input_with(node, gm.graph.node_copy(node))
            modified = True
    return modified


def _layers(gm: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for node in gm.graph.nodes if node.target in _LAYERS)
