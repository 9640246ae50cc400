"""Split each fake-quantizer into its two halves, with the integers between them.

Before:  quantizers_relu = FakeQuantize(relu); pool = MaxPool2d(quantizers_relu)
After:   quantize = kernels.quantize(relu, 0.02, 0, 255)            # uint8
         dequantize = kernels.dequantize(quantize, 0.02, 0); pool = MaxPool2d(dequantize)

Nothing else changes: the values are the same, Eqs. (1) and (4). Signed grids are moved to start at
0, which is what the kernels work on. A quantizer with a scale for each channel stays as it is, and
so does one whose result is changed in place and read again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.graph.mutations import changed_while_read
from fxquant.graph.operations import module_of, source_of
from fxquant.graph.records import refuse
from fxquant.graph.submodules import Submodules
from fxquant.int8.integers import dequantize, quantize
from fxquant.modules.fake_quantize import FakeQuantize
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED


@dataclass(frozen=True, eq=False)
class SplitQuantizers(Pass):
    """Split each fake-quantizer into its two halves, with the integers between them."""

    starts_from = CONVERTED

    def run(self, gm: fx.GraphModule) -> bool:
        """Replace each `FakeQuantize` of one scale and at most 8 bits."""
        split = set()
        changed = changed_while_read(gm)
        for node in list(gm.graph.nodes):
            quantizer = module_of(gm, node)
            if not isinstance(quantizer, FakeQuantize):
                continue
            reason = _why_not_integers(quantizer, changed.get(node))
            if reason is not None:
                refuse(node, "not lowered", reason)
                continue
            with gm.graph.inserting_after(node):
                integers = quantize(
                    source_of(node), quantizer.affine.unsigned().numbers(), node.name
                )
            node.replace_all_uses_with(dequantize(integers))
            gm.graph.erase_node(node)
            split.add(str(node.target))
        Submodules(gm).drop_unused(split)
        return bool(split)


def _why_not_integers(quantizer: FakeQuantize, changed_by: fx.Node | None) -> str | None:
    if changed_by is not None:
        return f"{changed_by.name} changes it in place, and others read it then"
    if quantizer.axis is not None:
        return "it has a scale for each channel"
    if quantizer.spec.bits > 8:
        return f"{quantizer.spec.bits} bits do not fit into uint8"
    return None
