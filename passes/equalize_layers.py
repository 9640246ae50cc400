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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from fxquant.batchnorm import fold_after, fold_before
from fxquant.graph import users_by_module, why_not_changeable
from fxquant.layers import Layer, input_rows, num_inputs, num_outputs, output_rows
from fxquant.meta import annotate, record, refuse
from fxquant.operations import is_layer, is_leaky_relu, keeps_channels, module_of, relu_bounds
from fxquant.pipeline import Pass

_RELU = (0.0, float("inf"))


@dataclass(frozen=True, eq=False)
class EqualizeLayers(Pass):
    """Give the channels between two layers the same range in both layers' weights."""

    sweeps: int = 100
    """A layer between two others is in two pairs, so pairs take turns until nothing moves."""
    tolerance: float = 0.01
    """A scale that differs from 1 by less does not move its channel."""

    def run(self, gm: fx.GraphModule) -> bool:
        """Equalize each pair; modified if a single channel moved."""
        pairs = list(_find_pairs(gm))
        modified = False
        for _ in range(self.sweeps):
            moved = [_equalize(gm, first, second, self.tolerance) for first, second in pairs]
            if not any(moved):
                break
            modified = True
        return modified


def _find_pairs(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield each two layers of which the second alone sees the first's result."""
    users = users_by_module(gm)
    for first in gm.graph.nodes:
        if not is_layer(gm, first):
            continue
        second, reason = _follow(gm, first)
        if second is None and reason is None:
            continue  # an addition, a concatenation, the output: nothing to equalize with
        reason = reason or _why_not(gm, first, cast(fx.Node, second), users)
        if reason is not None:
            refuse(first, f"not equalized: {reason}")
        elif second is not None:
            yield first, second


def _follow(gm: fx.GraphModule, first: fx.Node) -> tuple[fx.Node | None, str | None]:
    """Return the layer behind `first`, or why there is none; neither where the result branches."""
    node = first
    while len(node.users) == 1:
        node = next(iter(node.users))
        if is_layer(gm, node):
            return node, None
        bounds = relu_bounds(gm, node)
        if bounds is not None and bounds != _RELU:
            return None, f"{node.name} clips at {bounds[1]:g}, whatever the scale"
        if not (bounds or is_leaky_relu(gm, node) or keeps_channels(gm, node)):
            return None, None
    return None, None


def _why_not(
    gm: fx.GraphModule, first: fx.Node, second: fx.Node, users: dict[nn.Module, list[fx.Node]]
) -> str | None:
    for node in (first, second):
        module = module_of(gm, node)
        assert module is not None
        if len(users[module]) > 1:
            return f"{node.target} is called {len(users[module])} times"
        reason = why_not_changeable(module)
        if reason is not None:
            return reason
    outputs = num_outputs(cast(Layer, module_of(gm, first)))
    inputs = num_inputs(cast(Layer, module_of(gm, second)))
    if outputs != inputs:
        return f"{first.name} makes {outputs} channels, {second.name} takes {inputs}"
    return None


def _equalize(gm: fx.GraphModule, first: fx.Node, second: fx.Node, tolerance: float) -> bool:
    """Rescale the channels between two layers; return whether one of them moved."""
    before, after = cast(Layer, module_of(gm, first)), cast(Layer, module_of(gm, second))
    made = _largest(output_rows(before, before.weight.detach()))
    met = _largest(input_rows(after, after.weight.detach()))
    scale = torch.sqrt(made / met)
    usable = (made > 0) & (met > 0) & torch.isfinite(scale)
    scale = torch.where(usable & ((scale - 1).abs() > tolerance), scale, 1.0)
    if torch.all(scale == 1):
        return False
    fold_after(before, 1 / scale, torch.zeros_like(scale))
    fold_before(after, scale, torch.zeros_like(scale))
    moments = record(first).moments
    if moments is not None:
        annotate(first, moments=(moments[0] / scale, moments[1] / scale))
    return True


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(dim=1).to(torch.promote_types(rows.dtype, torch.float32))
