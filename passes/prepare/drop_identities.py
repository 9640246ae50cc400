"""Remove calls that hand on their input unchanged in eval mode.

Before:  dropout = Dropout(x); y = Linear(dropout)
After:   y = Linear(x)

Identities: `nn.Identity`, empty `nn.Sequential`, every dropout module in eval mode, `F.dropout` and
torchvision's `stochastic_depth` with `training=False`, pooling and the like never.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from fxquant.graph.operations import argument, data_input, module_of
from fxquant.graph.rewriting import delete_unused, why_not_changeable
from fxquant.modules.torchvision_names import (
    STOCHASTIC_DEPTH,
    STOCHASTIC_DEPTH_FUNCTION,
    defined_as,
)
from fxquant.passes.pipeline import Pass

_DROPOUT_MODULES = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


# Where the argument `training` stands, and what it is when left out.
_TRAINING: dict[object, tuple[int, bool]] = {
    F.dropout: (2, True),
    F.dropout1d: (2, True),
    F.dropout2d: (2, True),
    F.dropout3d: (2, True),
    F.alpha_dropout: (2, False),
    F.feature_alpha_dropout: (2, False),
    torch.dropout: (2, True),
    STOCHASTIC_DEPTH_FUNCTION: (3, True),
}


@dataclass(frozen=True, eq=False)
class DropIdentities(Pass):
    """Remove calls that hand on their input unchanged in eval mode."""

    def run(self, gm: fx.GraphModule) -> bool:
        """Erase each identity and let its users take its input."""
        dropped = set()
        for node in list(gm.graph.nodes):
            source = data_input(node)
            if source is not None and _is_identity(gm, node):
                if node.op == "call_module":
                    dropped.add(str(node.target))
                node.replace_all_uses_with(source)
                gm.graph.erase_node(node)
                dropped.add("")
        delete_unused(gm, dropped - {""})
        return bool(dropped)


def _is_identity(gm: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(gm, node)
    if module is not None:
        if why_not_changeable(module) is not None:
            return False
        kind = type(module)
        if kind is nn.Identity or (kind is nn.Sequential and len(module) == 0):  # type: ignore[arg-type]
            return True
        is_dropout = kind in _DROPOUT_MODULES or defined_as(kind) == STOCHASTIC_DEPTH
        return is_dropout and not module.training
    known = _TRAINING.get(node.target) or _TRAINING.get(defined_as(node.target))
    if node.op != "call_function" or known is None:
        return False
    position, default = known
    return argument(node, position, "training", default) is False
