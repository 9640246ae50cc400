"""Give the channels between two layers the same range in both layers' weights.

Before:  relu = ReLU(conv1(x)); conv2 = Conv2d(relu)
After:   the same graph, with W₁ᵢ / sᵢ, b₁ᵢ / sᵢ and sᵢ · W₂ᵢ for each channel i between them

sᵢ = √(r₁ᵢ / r₂ᵢ), r₁ᵢ the largest |weight| that makes channel i, r₂ᵢ the largest that meets it;
both become √(r₁ᵢ · r₂ᵢ). The output stays what it was, since f(s·x) = s·f(x) for a ReLU, a leaky
ReLU, and pooling (Nagel et al., "Data-free quantization through weight equalization and bias
correction", 2019, Eqs. 6-11). A ReLU6 clips at a fixed value, so its pair is refused. It helps
where one scale serves a whole weight or activation and channels differ: in depthwise convolutions
above all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxquant.graph.operations import layer_of
from fxquant.graph.pairs import Pair, find_pairs
from fxquant.graph.records import annotate, record
from fxquant.graph.submodules import Submodules
from fxquant.modules.batchnorm import fold_after, fold_before
from fxquant.modules.layers import input_rows, output_rows
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED


@dataclass(frozen=True, eq=False)
class EqualizeLayers(Pass):
    """Give the channels between two layers the same range in both layers' weights."""

    starts_from = TRACED

    sweeps: int = 100
    """A layer between two others is in two pairs, so pairs take turns until nothing moves."""
    tolerance: float = 0.01
    """A scale that differs from 1 by less does not move its channel."""

    def run(self, gm: fx.GraphModule) -> bool:
        """Equalize each pair; modified if a single channel moved."""
        pairs = list(find_pairs(gm, "not equalized"))
        submodules = Submodules(gm)
        modified = False
        for _ in range(self.sweeps):
            moved = [_equalize(gm, pair, submodules, self.tolerance) for pair in pairs]
            if not any(moved):
                break
            modified = True
        return modified


def _equalize(gm: fx.GraphModule, pair: Pair, submodules: Submodules, tolerance: float) -> bool:
    """Rescale the channels between two layers; return whether one of them moved."""
    before, after = layer_of(gm, pair.first), layer_of(gm, pair.second)
    made = _largest(output_rows(before, before.weight.detach()))
    met = _largest(input_rows(after, after.weight.detach()))
    scale = torch.sqrt(made / met)
    usable = (made > 0) & (met > 0) & torch.isfinite(scale)
    scale = torch.where(usable & ((scale - 1).abs() > tolerance), scale, 1.0)
    if torch.all(scale == 1):
        return False
    unmoved = torch.zeros_like(scale)
    fold_after(submodules.own(str(pair.first.target)), 1 / scale, unmoved)
    fold_before(submodules.own(str(pair.second.target)), scale, unmoved)
    moments = record(pair.first).moments
    if moments is not None:
        annotate(pair.first, moments=(moments[0] / scale, moments[1] / scale))
    return True


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(dim=1).to(torch.promote_types(rows.dtype, torch.float32))
