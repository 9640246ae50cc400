"""Write SiLU as the product that it is, for runtimes that have no integer form of it.

Before:  silu = F.silu(conv)
After:   sigmoid = torch.sigmoid(conv); silu = conv * sigmoid
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from fxquant.graph.mutations import changed_while_read, is_inplace
from fxquant.graph.operations import data_input, operation_of
from fxquant.graph.submodules import Submodules
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED


@dataclass(frozen=True, eq=False)
class ExpandSilu(Pass):
    """Write SiLU as the product of its input and a sigmoid."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each SiLU, but for those in place whose input is read later."""
        changed, called = changed_while_read(gm), []
        for node in list(gm.graph.nodes):
            source = data_input(node)
            if source is None or operation_of(gm, node).activation != "swish":
                continue
            if is_inplace(gm, node) and source in changed:
                continue
            with gm.graph.inserting_before(node):
                sigmoid = gm.graph.call_function(torch.sigmoid, (source,))
                product = gm.graph.call_function(operator.mul, (source, sigmoid))
            name, product.meta = node.name, dict(node.meta)
            node.replace_all_uses_with(product)
            gm.graph.erase_node(node)
            product.name = name
            called.append(str(node.target))
        Submodules(gm).drop_unused(called)
        return bool(called)
