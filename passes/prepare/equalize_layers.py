"""Give the channels between two layers the same range in both layers' weights.

Before:  relu = ReLU(conv1(x)); conv2 = Conv2d(relu)
After:   the same graph, with W₁ᵢ / sᵢ, b₁ᵢ / sᵢ and sᵢ · W₂ᵢ for each channel i between them

Before:  relu6 = ReLU6(conv1(x)); conv2 = Conv2d(relu6)
After:   relu6 = F.hardtanh(conv1(x), 0, max 6/sᵢ)
         relu6_clamp = ChannelClamp(relu6)    # at 6/sᵢ
         conv2 = Conv2d(relu6_clamp)

sᵢ = √(r₁ᵢ / r₂ᵢ), r₁ᵢ the largest |weight| that makes channel i, r₂ᵢ the largest that meets it;
both become √(r₁ᵢ · r₂ᵢ). Where its bias or a clip makes a channel wider than its weights do, r₁ᵢ is
what these ask, so that the activation's channels stay alike, too. The output stays what it was,
since f(s·x) = s·f(x) for a ReLU, a leaky ReLU, and pooling (Nagel et al., "Data-free quantization
through weight equalization and bias correction", 2019, Eqs. 6-11). A ReLU6 or a Hardtanh clips at
the same values whatever the scale: their bounds move with the channels. A hardswish is no such
function at any scale. Equalization helps where one scale serves a whole weight or activation and
channels differ: in depthwise convolutions above all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxquant.graph.operations import layer_of, module_of
from fxquant.graph.pairs import Pair, find_pairs, move_clips, rescale_layers
from fxquant.graph.submodules import Submodules
from fxquant.modules.by_channel import ChannelClamp
from fxquant.modules.layers import Layer, input_rows, output_rows
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED

_BIASED = 8.0
"""So many times as wide as by its weights may a channel be by its bias, before that counts."""


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
        pairs = list(find_pairs(gm, "not equalized", clips=True))
        submodules = Submodules(gm)
        scales: dict[Pair, Tensor] = {}
        for _ in range(self.sweeps):
            moved = {
                pair: _equalize(gm, pair, scales.get(pair), submodules, self.tolerance)
                for pair in pairs
            }
            found = {pair: scale for pair, scale in moved.items() if scale is not None}
            if not found:
                break
            for pair, scale in found.items():
                scales[pair] = scales.get(pair, 1.0) * scale
        for pair, scale in scales.items():
            move_clips(gm, pair, scale, submodules)
        return bool(scales)


def _equalize(
    gm: fx.GraphModule,
    pair: Pair,
    so_far: Tensor | None,
    submodules: Submodules,
    tolerance: float,
) -> Tensor | None:
    """Rescale the channels between two layers; return s, (channels,), None if it moves none.

    Args:
        gm: the graph.
        pair: the two layers.
        so_far: what the channels have been divided by.
        submodules: of the graph.
        tolerance: a scale that differs from 1 by less moves nothing.
    """
    before, after = layer_of(gm, pair.first), layer_of(gm, pair.second)
    clips = _clips_at(gm, pair)
    if clips is not None and so_far is not None:
        clips = clips / so_far
    made = _made(before, clips)
    met = _largest(input_rows(after, after.weight.detach()))
    scale = torch.sqrt(made / met)
    usable = (made > 0) & (met > 0) & torch.isfinite(scale)
    scale = torch.where(usable & ((scale - 1).abs() > tolerance), scale, 1.0)
    if torch.all(scale == 1):
        return None
    rescale_layers(pair, scale, submodules)
    return scale


def _clips_at(gm: fx.GraphModule, pair: Pair) -> Tensor | None:
    """Return at what the channels between two layers are cut off, () or (channels,); None: not."""
    found = None
    for clip in pair.clips(gm):
        known = module_of(gm, clip)
        if isinstance(known, ChannelClamp):
            ends = torch.stack([known.low, known.high]).to(torch.float32).abs()
            return torch.where(torch.isfinite(ends), ends, 0.0).amax(dim=0)
        found = torch.ones(())
    return found


def _made(layer: Layer, clips: Tensor | None) -> Tensor:
    """Return how wide the layer makes each channel: (channels,).

    That is its largest |weight|; or what its bias asks, or `clips`, at what it is cut off, as a
    share of the widest. A channel with next to no weights computes its bias, or a constant: made as
    wide as the others by its weights, it would take the whole range of the activation.
    """
    largest = _largest(output_rows(layer, layer.weight.detach()))
    shares = [] if clips is None else [clips / clips.max().clamp(min=1e-30)]
    if layer.bias is not None:
        bias = layer.bias.detach().abs().to(largest.dtype)
        shares.append(bias / (_BIASED * bias.max().clamp(min=1e-30)))
    for share in shares:
        largest = torch.maximum(largest, (share * largest.max()).to(largest))
    return largest


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(dim=1).to(torch.promote_types(rows.dtype, torch.float32))
