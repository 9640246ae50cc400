"""Let additions whose operands and result are quantized work on integers.

Before:  add = dequantize + dequantize_1; relu = ReLU(add); quantize = kernels.quantize(relu, …)
After:   add = Int8Add(quantize_1, quantize_2)                       # uint8

A ReLU between the addition and the quantization goes along. An addition behind a layer is the
layer's own business (`LowerLayers`), and is what is left to it here only if the layer could not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.graph.chains import Chain
from fxquant.graph.operations import is_add, relu_bounds
from fxquant.graph.submodules import Submodules, free_name
from fxquant.int8.integers import (
    affine_of,
    drop_unused_dequantize,
    integers_behind,
    is_quantize,
    replace_chain,
)
from fxquant.int8.modules import Int8Add
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED


@dataclass(frozen=True, eq=False)
class LowerAdditions(Pass):
    """Let additions whose operands and result are quantized work on integers."""

    starts_from = CONVERTED

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each of them by a call of an `Int8Add`."""
        additions = [node for node in gm.graph.nodes if is_add(gm, node)]
        submodules = Submodules(gm)
        container = free_name(gm, "additions")
        modified = [_lower(gm, node, submodules, container) for node in additions]
        return any(modified) | drop_unused_dequantize(gm)


def _lower(gm: fx.GraphModule, add: fx.Node, submodules: Submodules, container: str) -> bool:
    operands = [each for operand in add.args if (each := integers_behind(operand)) is not None]
    chain = Chain.behind(gm, add).take(relu_bounds).take(is_quantize)
    if len(operands) < 2 or not is_quantize(gm, chain.last):
        return False
    target = free_name(gm, f"{container}.{add.name}")
    first, second = (affine_of(each) for each in operands)
    clamp = relu_bounds(gm, chain.nodes[1])
    submodules.put(target, Int8Add(first, second, affine_of(chain.last), clamp))
    with gm.graph.inserting_before(add):
        lowered = gm.graph.call_module(target, tuple(operands))
    replace_chain(chain, lowered)
    return True
