"""Compute a ReLU, or another clamp, before the max-pool in front of it.

Before:  max_pool2d = F.max_pool2d(conv, 2); relu = F.relu(max_pool2d)
After:   relu = F.relu(conv); max_pool2d = F.max_pool2d(relu, 2)

The greatest of clamped values is the clamped greatest one, so that nothing changes. A layer can
take the ReLU in then. XNNPACK takes it into the max-pool otherwise, whose result it then reads in
the ReLU's parameters: 97 steps wrong without a word (ExecuTorch 1.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxquant.graph.mutations import is_inplace
from fxquant.graph.operations import module_of, operation_of, readers, relu_bounds, source_of
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED

_CLAMPS = (F.hardtanh, F.hardtanh_, torch.clamp, torch.clip, "clamp", "clamp_", "clip", "clip_")


@dataclass(frozen=True, eq=False)
class ClampBeforePool(Pass):
    """Compute a ReLU, or another clamp, before the max-pool in front of it."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Swap each pair, but where the max-pool, or in place what it reads, is read elsewhere."""
        modified = False
        for clamp in list(gm.graph.nodes):
            while _is_clamp(gm, clamp) and _is_movable(gm, clamp):
                pool = source_of(clamp)
                source = source_of(pool)
                clamp.replace_all_uses_with(pool)
                clamp.replace_input_with(pool, source)
                pool.replace_input_with(source, clamp)
                pool.prepend(clamp)
                modified = True
        return modified


def _is_movable(gm: fx.GraphModule, clamp: fx.Node) -> bool:
    """Say whether it alone reads a max-pool, and changes nothing that others read."""
    pool = source_of(clamp)
    if operation_of(gm, pool).kind != "max_pool2d" or readers(gm, pool) != [clamp]:
        return False
    source = source_of(pool)
    return not is_inplace(gm, clamp) or (source.op != "placeholder" and len(source.users) == 1)


def _is_clamp(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether it clamps one tensor between numbers."""
    if relu_bounds(gm, node) is not None:
        return True
    is_one = isinstance(module_of(gm, node), nn.Hardtanh) or node.target in _CLAMPS
    return is_one and len(node.all_input_nodes) == 1
