"""Remove calls that hand on their input unchanged in eval mode.

Before:  dropout = Dropout(x); y = Linear(dropout)
After:   y = Linear(x)

Identities: `nn.Identity`, empty `nn.Sequential`, every dropout module in eval mode, `F.dropout` and
torchvision's `stochastic_depth` with `training=False`, pooling and the like never.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.graph.chains import take_out
from fxquant.graph.operations import data_input, operation_of
from fxquant.graph.submodules import Submodules
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED


@dataclass(frozen=True, eq=False)
class DropIdentities(Pass):
    """Remove calls that hand on their input unchanged in eval mode."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Erase each identity and let its users take its input."""
        dropped = set()
        for node in list(gm.graph.nodes):
            if data_input(node) is not None and operation_of(gm, node).kind == "identity":
                if node.op == "call_module":
                    dropped.add(str(node.target))
                take_out(node)
                dropped.add("")
        Submodules(gm).drop_unused(dropped - {""})
        return bool(dropped)
