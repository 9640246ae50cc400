"""Two layers of which the second alone sees the first's result, channel by channel.

What the first makes of a channel, the second can take back: that is what moves ranges and biases
between layers (Nagel et al., "Data-free quantization through weight equalization and bias
correction", 2019, 4.1). A clip in between, as a ReLU6, has to move with the channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxquant.graph.chains import Chain
from fxquant.graph.operations import is_layer, layer_of, module_of, operation_of, source_of
from fxquant.graph.records import annotate, record, refuse
from fxquant.graph.submodules import (
    Submodules,
    free_place,
    users_by_module,
    why_not_changeable,
)
from fxquant.modules.batchnorm import fold_after, fold_before
from fxquant.modules.by_channel import ChannelClamp
from fxquant.modules.layers import channel_axis, num_inputs, num_outputs
from fxquant.modules.own import as_own

_RELU = (0.0, float("inf"))


@dataclass(frozen=True)
class Pair:
    """Two layers, and what lies between them: ReLUs, leaky ReLUs, pooling, clips, observers."""

    first: fx.Node
    second: fx.Node
    between: tuple[fx.Node, ...]

    def clips(self, gm: fx.GraphModule) -> list[fx.Node]:
        """Return what clips at values that are not 0, so that it depends on the scale."""
        return [node for node in self.between if _clips(gm, node)]


def rescale_layers(pair: Pair, scale: Tensor, submodules: Submodules) -> None:
    """Let the first layer make each channel 1/scale as large, and the second take that back.

    Args:
        pair: what clips between the two is moved by `move_clips`.
        scale: (channels,).
        submodules: of the graph.
    """
    rescale_outputs(pair, scale, submodules)
    fold_before(submodules.own(str(pair.second.target)), scale, torch.zeros_like(scale))


def rescale_outputs(pair: Pair, scale: Tensor, submodules: Submodules) -> None:
    """Let the first layer make each channel 1/scale as large, (channels,)."""
    fold_after(submodules.own(str(pair.first.target)), 1 / scale, torch.zeros_like(scale))
    moments = record(pair.first).moments
    if moments is not None:
        annotate(pair.first, moments=(moments[0] / scale, moments[1] / scale))


def move_clips(gm: fx.GraphModule, pair: Pair, scale: Tensor, submodules: Submodules) -> None:
    """Let what clips between the layers work on channels that are 1/scale as large as they were."""
    clips = pair.clips(gm)
    known = [module_of(gm, clip) for clip in clips]
    channels = [module for module in known if isinstance(module, ChannelClamp)]
    loose = [_is_loose(operation_of(gm, clip).limits, channels) for clip in clips]
    for clip, is_loose in zip(clips, loose, strict=True):
        _move_clip(gm, pair, clip, scale, submodules, is_loose)


def find_pairs(gm: fx.GraphModule, step: str | None, *, clips: bool) -> Iterator[Pair]:
    """Yield the pairs of `gm`, in execution order.

    Args:
        gm: the graph.
        step: what is to be done ("not equalized"): why two layers are no pair is recorded on the
            first, as a refusal of it; None: it is not.
        clips: whether there may be clips in between.
    """
    users = users_by_module(gm)
    for first in gm.graph.nodes:
        if not is_layer(gm, first):
            continue
        pair, reason = _follow(gm, first, clips)
        if pair is not None:
            reason = _why_not(gm, pair, users)
        if reason is None and pair is not None:
            yield pair
        elif reason is not None and step is not None:
            refuse(first, step, reason)


def _follow(gm: fx.GraphModule, first: fx.Node, clips: bool) -> tuple[Pair | None, str | None]:
    """Return the pair that `first` starts, or why there is none; neither where nothing follows.

    An addition, a concatenation or the output follows, or the result branches.
    """
    lies_last = channel_axis(layer_of(gm, first)) == -1
    lets_through = _lets_scales_of_last_axis_through if lies_last else _lets_scales_through
    chain = Chain.behind(gm, first).take_all(
        lambda gm, node: lets_through(gm, node) or (clips and _clips(gm, node))
    )
    after = chain.next
    if after is None:
        return None, None
    if is_layer(gm, after):
        return Pair(first, after, chain.nodes[1:]), None
    limits = operation_of(gm, after).limits
    at = ", ".join(f"{limit:g}" for limit in limits or () if limit and math.isfinite(limit))
    return None, f"{after.name} clips at {at}, whatever the scale" if at else None


def _move_clip(
    gm: fx.GraphModule,
    pair: Pair,
    clip: fx.Node,
    scale: Tensor,
    submodules: Submodules,
    is_loose: bool,
) -> None:
    """Let `clip` work on channels that are 1/scale as large as they were.

    Where it is loose, another clamps each channel, and moves itself.
    """
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
    if is_loose or (torch.all(low == low[0]) and torch.all(high == high[0])):
        return
    low, high = (each.to(layer.weight.dtype) for each in (low, high))
    path = free_place(gm, f"{name}_clamp")
    submodules.put(path, ChannelClamp(low, high, channel_axis(layer)))
    with gm.graph.inserting_after(wide):
        clamp = gm.graph.call_module(path, ())
    wide.replace_all_uses_with(clamp)
    clamp.args = (wide,)


def _is_loose(limits: tuple[float, float] | None, channels: Sequence[ChannelClamp]) -> bool:
    """Say whether one of `channels` clamps each of them within `limits` anyway."""
    if limits is None:
        return False
    low, high = limits
    return any(bool((each.low >= low).all() and (each.high <= high).all()) for each in channels)


def _clips(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node clamps one tensor at numbers other than 0, or channel by channel."""
    operation = operation_of(gm, node)
    at_zero = (0.0, -math.inf, math.inf)
    is_clip = operation.limits is not None and not set(operation.limits) <= set(at_zero)
    return len(node.all_input_nodes) == 1 and (is_clip or operation.kind == "channel_clamp")


def _lets_scales_through(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the node's result has the scale of its input, channel by channel."""
    operation = operation_of(gm, node)
    return operation.keeps_channels or _lets_scales_of_last_axis_through(gm, node)


def _lets_scales_of_last_axis_through(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say the same where channels lie along the last axis, as a linear layer's: pools mix them."""
    if as_own(module_of(gm, node)).watches:
        return True
    operation = operation_of(gm, node)
    return operation.bounds == _RELU or operation.kind in ("leaky_relu", "identity")


def _why_not(gm: fx.GraphModule, pair: Pair, users: dict[nn.Module, list[fx.Node]]) -> str | None:
    for node in (pair.first, pair.second):
        module = layer_of(gm, node)
        if len(users[module]) > 1:
            return f"{node.target} is called {len(users[module])} times"
        reason = why_not_changeable(module)
        if reason is not None:
            return reason
    first, second = layer_of(gm, pair.first), layer_of(gm, pair.second)
    if channel_axis(first) != channel_axis(second):
        return f"{pair.first.name} and {pair.second.name} have their channels along other axes"
    outputs, inputs = num_outputs(first), num_inputs(second)
    if outputs != inputs:
        return f"{pair.first.name} makes {outputs} channels, {pair.second.name} takes {inputs}"
    return None
