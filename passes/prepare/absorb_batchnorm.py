"""Fold an eval-mode batch norm into the layers behind it.

Before:  bn = BatchNorm2d(x); conv = Conv2d(bn); return conv
After:   conv = Conv2d(x)  # folded: bn; return conv

W' = W · scale along the input's channels,  b' = b + Σ W · shift

Exact where every user of the batch norm is a layer that pads nothing with zeros, or where the shift
is zero: zeros enter behind the batch norm, and would have to be -shift/scale before it. Run it
after `FoldBatchNorm`, which needs no such condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxquant.capture.naming import target_name
from fxquant.graph.axes import known_ranks
from fxquant.graph.chains import take_out
from fxquant.graph.operations import (
    batchnorm_of,
    is_batchnorm,
    is_layer,
    layer_of,
    readers,
    source_of,
)
from fxquant.graph.records import annotate, record, refuse
from fxquant.graph.submodules import Submodules, why_not_changeable
from fxquant.modules.batchnorm import (
    fold_before,
    scale_and_shift,
    why_not_affine,
    why_shift_inexact,
)
from fxquant.modules.layers import Layer, num_inputs
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED


@dataclass(frozen=True, eq=False)
class AbsorbBatchNorm(Pass):
    """Fold an eval-mode batch norm into the layers behind it."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Fold where exact; record the reason on the batch norm elsewhere."""
        absorbed = set()
        ranks = known_ranks(gm)
        submodules = Submodules(gm)
        for batchnorm in reversed(gm.graph.nodes):  # of two in a row the last comes first
            if not is_batchnorm(gm, batchnorm):
                continue
            if not any(is_layer(gm, user) for user in readers(gm, batchnorm)):
                _say_that_it_stands_alone(gm, batchnorm)
                continue
            reason = _why_not(gm, batchnorm, ranks.get(batchnorm))
            if reason is not None:
                refuse(batchnorm, "not folded forward", reason)
                continue
            _absorb(gm, batchnorm, submodules)
            absorbed.add(str(batchnorm.target))
        submodules.drop_unused(absorbed)
        return bool(absorbed)


def _absorb(gm: fx.GraphModule, batchnorm: fx.Node, submodules: Submodules) -> None:
    scale, shift = scale_and_shift(batchnorm_of(gm, batchnorm))
    behind: dict[Layer, list[fx.Node]] = {}
    for user in readers(gm, batchnorm):
        behind.setdefault(layer_of(gm, user), []).append(user)
    for layers in behind.values():
        fold_before(submodules.separate(layers), scale, shift)
        for layer in layers:
            annotate(layer, folded=(*record(layer).folded, target_name(gm, str(batchnorm.target))))
    take_out(batchnorm)


def _why_not(gm: fx.GraphModule, batchnorm: fx.Node, rank: int | None) -> str | None:
    users = readers(gm, batchnorm)
    others = [user.name for user in users if not is_layer(gm, user)]
    if others:
        return f"it also feeds {', '.join(others)}"
    module = batchnorm_of(gm, batchnorm)
    reason = why_not_affine(module) or why_not_changeable(module)
    if reason is not None:
        return reason
    _, shift = scale_and_shift(module)
    for user in users:
        layer = layer_of(gm, user)
        reason = why_not_changeable(layer) or _why_inexact(layer, shift, rank)
        if reason is not None:
            return f"{user.name}: {reason}"
    return None


def _say_that_it_stands_alone(gm: fx.GraphModule, batchnorm: fx.Node) -> None:
    source = source_of(batchnorm)
    if record(batchnorm).refused or is_layer(gm, source):  # said, or `FoldBatchNorm`'s to say
        return
    behind = ", ".join(user.name for user in readers(gm, batchnorm))
    refuse(batchnorm, "not folded", f"between {source.name} and {behind} no layer is next to it")


def _why_inexact(layer: Layer, shift: Tensor, rank: int | None) -> str | None:
    if len(shift) != num_inputs(layer):
        return f"{num_inputs(layer)} input channels, but a batch norm over {len(shift)}"
    if isinstance(layer, nn.Linear):
        seen = "of unknown rank (prepare with example_inputs)" if rank is None else f"{rank}-D"
        reason = f"batch norm works on axis 1, a linear layer on the last; its input is {seen}"
        return None if rank == 2 else reason
    if isinstance(layer, nn.Conv1d) and rank == 2:
        return "its input is 2-D, without a batch: batch norm took positions for channels"
    if not torch.any(shift != 0):
        return None
    return why_shift_inexact(layer)
