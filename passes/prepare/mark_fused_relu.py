"""Record which ReLU belongs to which call; the graph stays as it is.

Before:  conv = Conv2d(x); relu = ReLU(conv)
After:   conv = Conv2d(x)  # fused: relu; relu = ReLU(conv)  # fused into conv

Known as modules, functions and methods: ReLU, ReLU6, Hardtanh(0, ·), clamp(min=0); behind a layer,
a batch norm or an addition. What is recorded decides where observers look (the distribution is
whole before the ReLU), which clip ACIQ takes, and what the kernels fuse (report, II.A.2, III.A).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxquant.graph.chains import find_chains
from fxquant.graph.operations import operation_of, relu_bounds
from fxquant.graph.records import annotate, record, refuse
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED


@dataclass(frozen=True, eq=False)
class MarkFusedRelu(Pass):
    """Record which ReLU belongs to which call."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Annotate each pair; a ReLU whose input is used elsewhere too is refused."""
        modified = False
        for chain in find_chains(gm, _takes_relu, relu_bounds):
            call, relu = chain.nodes
            if record(relu).fused_into == call.name:
                continue
            reason = chain.why_not_fusable()
            if reason is not None:
                refuse(relu, "not fused", reason)
                continue
            clamp = relu_bounds(gm, relu)
            annotate(call, relu=relu.name, clamp=clamp)
            annotate(relu, fused_into=call.name, clamp=clamp)
            modified = True
        return modified


def _takes_relu(gm: fx.GraphModule, node: fx.Node) -> bool:
    return operation_of(gm, node).kind in ("layer", "batchnorm", "add")
