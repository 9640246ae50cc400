"""Let kernels overwrite an operand that nobody reads later.

Before:  conv = Int8Conv(x, identity)     # keep_other=True: adds into a copy
After:   conv = Int8Conv(x, identity)     # adds into `identity` itself

The operand's tensor must be its own, not a view of another, and no view of it may be read later.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from fxquant.graph.operations import module_of, operation_of, readers
from fxquant.graph.submodules import Submodules
from fxquant.int8 import kernels
from fxquant.int8.modules import Int8Conv, Int8Module
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED

_NEW_TENSOR = (
    kernels.quantize, kernels.requantize, kernels.dequantize, kernels.narrow, kernels.widen,
    kernels.average, kernels.max_pool2d, kernels.pad,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ReuseOperands(Pass):
    """Let kernels overwrite an operand that nobody reads later."""

    starts_from = CONVERTED

    def run(self, gm: fx.GraphModule) -> bool:
        """Set `keep_other` of each `Int8Conv` that adds an operand."""
        position = {node: number for number, node in enumerate(gm.graph.nodes)}
        submodules = Submodules(gm)
        modified = False
        for node in gm.graph.nodes:
            module = module_of(gm, node)
            if not isinstance(module, Int8Conv) or len(node.args) < 2 or not module.keep_other:
                continue
            x, other = node.args
            assert isinstance(other, fx.Node)
            if x is other:
                continue
            seen_by = readers(gm, other)
            earlier = all(position[reader] <= position[node] for reader in seen_by)
            if earlier and all(_is_new(gm, each) for each in (other, *seen_by)):
                submodules.separate([node]).keep_other = False
                modified = True
        return modified


def _is_new(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node's result is a tensor of its own."""
    module: nn.Module | None = module_of(gm, node)
    if isinstance(module, Int8Module) or operation_of(gm, node).concatenated:
        return True
    return node.op == "call_function" and node.target in _NEW_TENSOR
