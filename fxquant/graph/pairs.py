"""Two layers of which the second alone sees the first's result, channel by channel.

What the first makes of a channel, the second can take back: that is what moves ranges and biases
between layers (Nagel et al., "Data-free quantization through weight equalization and bias
correction", 2019, 4.1). A clip in between, as a ReLU6, has to move with the channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from fxquant.graph.chains import Chain
from fxquant.graph.operations import is_layer, layer_of, operation_of
from fxquant.graph.records import refuse
from fxquant.graph.submodules import users_by_module, why_not_changeable
from fxquant.modules.layers import channel_axis, num_inputs, num_outputs

_RELU = (0.0, float("inf"))


@dataclass(frozen=True)
class Pair:
    """Two layers, and what lies between them: ReLUs, leaky ReLUs, pooling, clips."""

    first: fx.Node
    second: fx.Node
    between: tuple[fx.Node, ...]

    def clips(self, gm: fx.GraphModule) -> list[fx.Node]:
        """Return what clips at values that are not 0, so that it depends on the scale."""
        return [node for node in self.between if _clips(gm, node)]


def find_pairs(gm: fx.GraphModule, step: str, *, clips: bool) -> Iterator[Pair]:
    """Yield the pairs of `gm`, in execution order.

    Args:
        gm: the graph.
        step: what is to be done ("not equalized"): why two layers are no pair is recorded on the
            first, as a refusal of it.
        clips: whether there may be clips in between.
    """
    users = users_by_module(gm)
    for first in gm.graph.nodes:
        if not is_layer(gm, first):
            continue
        pair, reason = _follow(gm, first, clips)
        if pair is not None:
            reason = _why_not(gm, pair, users)
        if reason is not None:
            refuse(first, step, reason)
        elif pair is not None:
            yield pair


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
