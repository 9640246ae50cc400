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
from torch.nn import functional as F

from fxquant.graph.operations import layer_of, module_of, operation_of, source_of
from fxquant.graph.pairs import Pair, find_pairs
from fxquant.graph.records import annotate, record
from fxquant.graph.submodules import Submodules, free_place
from fxquant.modules.batchnorm import fold_after, fold_before
from fxquant.modules.by_channel import ChannelClamp
from fxquant.modules.layers import Layer, channel_axis, input_rows, output_rows
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
            for clip in pair.clips(gm):
                _move_clip(gm, pair, clip, scale, submodules)
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
    unmoved = torch.zeros_like(scale)
    fold_after(submodules.own(str(pair.first.target)), 1 / scale, unmoved)
    fold_before(submodules.own(str(pair.second.target)), scale, unmoved)
    moments = record(pair.first).moments
    if moments is not None:
        annotate(pair.first, moments=(moments[0] / scale, moments[1] / scale))
    return scale


def _move_clip(
    gm: fx.GraphModule, pair: Pair, clip: fx.Node, scale: Tensor, submodules: Submodules
) -> None:
    """Let `clip` work on channels that are 1/scale as large as they were."""
    known = module_of(gm, clip)
    if isinstance(known, ChannelClamp):
        submodules.put(str(clip.target), known.rescaled(1 / scale))
        return
    limits = operation_of(gm, clip).limits
    assert limits is not None
    layer = layer_of(gm, pair.first)
    low, high = (limit / scale for limit in limits)
    ends = (float(low.min()), float(high.max()))
    name, source = clip.name, source_of(clip)
    with gm.graph.inserting_after(clip):
        wide = gm.graph.call_function(F.hardtanh, (source, *ends))
    wide.meta = dict(clip.meta)
    if record(clip).fused_into is not None:
        annotate(source, clamp=ends)
        annotate(wide, clamp=ends)
    clip.replace_all_uses_with(wide)
    gm.graph.erase_node(clip)
    wide.name = name
    if clip.op == "call_module":
        submodules.drop_unused([str(clip.target)])
    if torch.all(low == low[0]) and torch.all(high == high[0]):
        return
    low, high = (each.to(layer.weight.dtype) for each in (low, high))
    path = free_place(gm, f"{name}_clamp")
    submodules.put(path, ChannelClamp(low, high, channel_axis(layer)))
    with gm.graph.inserting_after(wide):
        clamp = gm.graph.call_module(path, ())
    wide.replace_all_uses_with(clamp)
    clamp.args = (wide,)


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
