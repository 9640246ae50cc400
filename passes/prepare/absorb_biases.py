"""Move what a ReLU never cuts off from one layer's bias into the next one's.

Before:  relu = ReLU(conv1(x)); conv2 = Conv2d(relu)
After:   the same graph, with b₁ - c and b₂ + Σ W₂ · c, c = max(0, β - 3γ) for each channel

relu(y - c) = relu(y) - c wherever y ≥ c, which holds of 99.9 % of the values of a channel that is
Gauss(β, γ²), as its batch norm says (Nagel et al., "Data-free quantization through weight
equalization and bias correction", 2019, 4.1.3, Eqs. 12-15). Equalization makes some biases large,
and with them the activations' range; this takes it back. Where the second layer pads zeros, c would
be missing at the borders: such a pair is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fxquant.graph.operations import layer_of, relu_bounds
from fxquant.graph.pairs import Pair, find_pairs
from fxquant.graph.records import annotate, record, refuse
from fxquant.graph.submodules import Submodules
from fxquant.modules.batchnorm import fold_after, fold_before, why_shift_inexact
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED

_SIGMAS = 3.0
_LEAST = 1e-3  # deviations: less than that is left where it is


@dataclass(frozen=True, eq=False)
class AbsorbBiases(Pass):
    """Move what a ReLU never cuts off from one layer's bias into the next one's."""

    starts_from = TRACED

    def run(self, gm: fx.GraphModule) -> bool:
        """Absorb in each pair behind a folded batch norm; modified if one channel moved."""
        submodules = Submodules(gm)
        modified = False
        for pair in find_pairs(gm, "bias not absorbed", clips=True):
            moments = record(pair.first).moments
            bounds = [relu_bounds(gm, node) for node in pair.between]
            if moments is None or not all(bounds):
                continue  # no batch norm; or a leaky ReLU, or pooling that may pad with zeros
            mean, deviation = moments
            moved = mean - _SIGMAS * deviation
            moved = torch.where(moved > _LEAST * deviation, moved, 0)
            if not torch.any(moved > 0):
                continue
            reason = _why_not(gm, pair)
            if reason is not None:
                refuse(pair.first, "bias not absorbed", reason)
                continue
            ones = torch.ones_like(moved)
            fold_after(submodules.own(str(pair.first.target)), ones, -moved)
            fold_before(submodules.own(str(pair.second.target)), ones, moved)
            annotate(pair.first, moments=(mean - moved, deviation))
            modified = True
        return modified


def _why_not(gm: fx.GraphModule, pair: Pair) -> str | None:
    for clip in pair.clips(gm):
        return f"{clip.name} clips at values that would have to move"
    reason = why_shift_inexact(layer_of(gm, pair.second))
    return None if reason is None else f"{pair.second.name}: {reason}"
