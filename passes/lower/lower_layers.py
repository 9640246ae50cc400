"""Let layers work on integers, with the addition and the activation function behind them.

Before:  conv = QuantizedConv2d(dequantize); add = conv + dequantize_1; relu = ReLU(add)
         quantize = kernels.quantize(relu, 0.02, 0, 255)
After:   conv = Int8Conv(quantize_1, quantize_2)                     # uint8

What a layer takes along: an addition of integers whose result is quantized, then a ReLU, ReLU6,
SiLU, hardswish, tanh or GELU, then the quantization; each only if nobody else sees what is before
it. A result that nobody quantizes is float32. A layer that the kernels cannot compute stays as it
is, and the reason is recorded.

The kernels' results are channels-last in memory, so that `view` may fail on them: it becomes
`reshape`. What is changed in place through a view is made contiguous first; so are 5-D tensors that
pixels are shuffled of, and where a call tells or goes by strides, the results of all convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxquant.graph.chains import Chain
from fxquant.graph.mutations import changed_while_read, may_be_view
from fxquant.graph.operation_table import argument
from fxquant.graph.operations import (
    data_input,
    is_add,
    module_of,
    operation_of,
    relu_bounds,
)
from fxquant.graph.records import annotate, record, refuse
from fxquant.graph.submodules import Submodules, free_name
from fxquant.int8.integers import (
    affine_of,
    drop_unused_dequantize,
    integers_behind,
    is_quantize,
    replace_chain,
)
from fxquant.int8.kernel_arguments import kernel_activation
from fxquant.int8.modules import Int8Conv, Int8Layer, Int8Linear, why_not_int8
from fxquant.int8.operands import Clamp
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.affine import AffineNumbers
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED

_SHUFFLES = (nn.PixelShuffle, nn.PixelUnshuffle, F.pixel_shuffle, F.pixel_unshuffle)
"""What PyTorch refuses of 5-D tensors that are channels-last."""
_GO_BY_STRIDES = (
    torch.as_strided, torch.view_as_complex, "as_strided", "stride", "is_contiguous",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class LowerLayers(Pass):
    """Let layers work on integers, with what is behind them."""

    starts_from = CONVERTED

    verify: bool = True
    """Check the kernels, now for what is known of the layers' inputs, and at each new size."""

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each `QuantizedLayer` whose input is integers."""
        submodules = Submodules(gm)
        users = submodules.users
        modified = False
        for node in list(gm.graph.nodes):
            layer = module_of(gm, node)
            if not isinstance(layer, QuantizedLayer):
                continue
            x = integers_behind(data_input(node))
            if x is None:
                refuse(node, "not lowered", "its input is in float")
                continue
            reason = why_not_int8(layer)
            if reason is not None:
                refuse(node, "not lowered", reason)
                continue
            for user in list(node.users):
                if operation_of(gm, user).kind == "rank":  # a layer keeps it
                    user.replace_input_with(node, x)
                    modified = True
            fusion = _fusion(gm, node, layer)
            module = _module_of(layer, x, fusion, self.verify)
            if isinstance(module, Int8Conv):
                reason = module.why_in_float(record(node).input_shape)
            if reason is not None:
                refuse(node, "not lowered", reason)
                continue
            is_shared = len(users[layer]) > 1
            users[layer].remove(node)
            target = free_name(gm, str(node.target)) if is_shared else str(node.target)
            submodules.put(target, module)
            _replace(gm, target, x, fusion)
            modified = True
        if modified:
            _keep_views(gm)
            _keep_strides(gm)
        return modified | drop_unused_dequantize(gm)


@dataclass(frozen=True)
class _Fusion:
    """A layer's node and those behind it that its kernel computes too."""

    chain: Chain
    other: fx.Node | None
    """The integers that are added."""
    activation: str
    clamp: Clamp
    output: AffineNumbers | None
    """What the result is quantized to."""


def _fusion(gm: fx.GraphModule, node: fx.Node, layer: nn.Module) -> _Fusion:
    alone = Chain.behind(gm, node)
    added = alone.take(is_add)
    # What asks for the layer's shape cannot ask for the sum's, which may be larger.
    if added is not alone and isinstance(layer, nn.Conv2d) and len(node.users) == 1:
        # Of y + y both operands are the layer's result.
        operands = (integers_behind(each) for each in added.last.args if each is not node)
        fusion = _with_activation(added, layer, next(operands, None))
        can_add = fusion.other is not None and fusion.output is not None
        if can_add and fusion.activation == "none":
            return fusion
    return _with_activation(alone, layer)


def _with_activation(chain: Chain, layer: nn.Module, other: fx.Node | None = None) -> _Fusion:
    """Take the activation function and the quantization along."""

    def bounds_or_name(gm: fx.GraphModule, node: fx.Node) -> object:
        return relu_bounds(gm, node) or kernel_activation(gm, node, layer)

    gm, activated = chain.gm, chain.take(bounds_or_name)
    quantized = activated.take(is_quantize)
    return _Fusion(
        chain=quantized,
        other=other,
        activation=kernel_activation(gm, activated.last, layer) or "none",
        clamp=relu_bounds(gm, activated.last),
        output=affine_of(quantized.last) if quantized is not activated else None,
    )


def _module_of(layer: QuantizedLayer, x: fx.Node, fusion: _Fusion, verify: bool) -> Int8Layer:
    """Return the `Int8Conv` or `Int8Linear` that computes the chain of integers `x`."""
    kind = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv
    other = None if fusion.other is None else affine_of(fusion.other)
    module = kind(layer, affine_of(x), fusion.output, fusion.activation, fusion.clamp, other)
    if not verify:
        module.verify = False
    return module


def _replace(gm: fx.GraphModule, target: str, x: fx.Node, fusion: _Fusion) -> None:
    """Put one call of the module `target` in the place of the chain."""
    chain, operands = fusion.chain, (x,) if fusion.other is None else (x, fusion.other)
    with gm.graph.inserting_before(chain.nodes[len(operands) - 1]):  # the layer, or the addition
        lowered = gm.graph.call_module(target, operands)
    replace_chain(chain, lowered)


def _keep_views(gm: fx.GraphModule) -> None:
    """Let `view` work on what is channels-last now, and show what is changed in place."""
    changed = changed_while_read(gm)
    for view, reshape in (("view", "reshape"), ("view_as", "reshape_as")):
        for node in gm.graph.find_nodes(op="call_method", target=view):
            if node not in changed and not isinstance(argument(node, 1, "dtype"), torch.dtype):
                node.target = reshape
    for node in changed:
        users = list(node.users)
        has_views = any(user in changed for user in users)
        if not has_views or may_be_view(gm, node) or node.op in ("placeholder", "get_attr"):
            continue
        _make_contiguous(node, users)


def _keep_strides(gm: fx.GraphModule) -> None:
    """Make contiguous what calls take by strides that are not those of the simulation."""
    nodes = list(gm.graph.nodes)
    go_by_strides = any(_target(gm, node) in _GO_BY_STRIDES for node in nodes)
    has_volumes = False
    for node in nodes:
        module, source = module_of(gm, node), data_input(node)
        if isinstance(module, Int8Conv):
            has_volumes |= len(module.stride) == 3
            if go_by_strides:
                _make_contiguous(node, node.users)
        elif has_volumes and source is not None and _target(gm, node) in _SHUFFLES:
            _make_contiguous(source, [node])


def _target(gm: fx.GraphModule, node: fx.Node) -> Any:
    """Return what is called: of a module its type."""
    module = module_of(gm, node)
    if module is not None:
        return type(module)
    return node.target if node.op in ("call_function", "call_method") else None


def _make_contiguous(node: fx.Node, users: Iterable[fx.Node]) -> None:
    """Let `users` read the result of `node` in the order of its axes."""
    users = list(users)
    if all(user.target == "contiguous" for user in users):
        return
    with node.graph.inserting_after(node):
        contiguous = node.graph.call_method("contiguous", (node,))
    annotate(contiguous, integers=record(node).integers)
    for user in users:
        user.replace_input_with(node, contiguous)
