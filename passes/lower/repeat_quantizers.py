"""Quantize again what calls that keep values make of quantized tensors.

Before:  cat = cat([quantizers_cat, quantizers_cat_1]); conv = QuantizedConv2d(cat)
After:   cat = cat([quantizers_cat, quantizers_cat_1]); quantizers_cat_2 = FakeQuantize(cat)
         conv = QuantizedConv2d(quantizers_cat_2)

Every value of `cat` is on the grid already, and so nothing changes. But runtimes that look for
integers only between two neighbours, as onnxruntime does, find them on both sides of each call.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from fxquant.graph.mutations import changed_while_read
from fxquant.graph.operations import (
    data_input,
    module_of,
    operation_of,
    readers,
    sources_of_values,
)
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED


@dataclass(frozen=True, eq=False)
class RepeatQuantizers(Pass):
    """Quantize again what calls that keep values make of quantized tensors."""

    starts_from = CONVERTED

    def run(self, gm: fx.GraphModule) -> bool:
        """Insert calls of the `FakeQuantize`s that are there."""
        grids: dict[fx.Node, str] = {}  # whose values are on the grid of which quantizer
        modified, changed = False, changed_while_read(gm)
        for node in list(gm.graph.nodes):
            if node in changed:
                continue
            quantizer = module_of(gm, node)
            if isinstance(quantizer, FakeQuantize) and quantizer.axis is None:
                grids[node] = str(node.target)
                continue
            targets = {grids.get(source) for source in sources_of_values(gm, node)}
            target = targets.pop() if len(targets) == 1 else None
            if target is None:
                continue
            grids[node] = target
            if _is_tuple(gm, node) or all(user.target == target for user in readers(gm, node)):
                continue
            with gm.graph.inserting_after(node):
                repeated = gm.graph.call_module(target)
            node.replace_all_uses_with(repeated)
            repeated.args = (node,)
            grids[repeated] = target
            modified = True
        return modified


def _is_tuple(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the result is, or may be, several tensors."""
    source = data_input(node)
    is_of_parts = source is not None and operation_of(gm, source).kind == "split"
    if is_of_parts and not isinstance(node.args[1], int):
        return True
    return operation_of(gm, node).kind == "split" or any(
        user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users
    )
