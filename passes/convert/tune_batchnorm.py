"""Give each quantized layer's output channels the mean and deviation that the float layer's have.

Before:  conv = QuantizedConv2d(x)     # outputs drifted, as its inputs and weight were rounded
After:   conv = QuantizedConv2d(x)     # s_w' = s_w · ρ, b' = (b - μ̂) · ρ + μ, ρ = σ/σ̂

Batch-norm tuning (Hubara et al., "Improving post training neural quantization: layer-wise
calibration and integer programming", 2020, 3.4; report, V.B): the batch norm that was folded is
rebuilt with the float network's own statistics, μ and σ, as its shift and scale; it re-collects its
statistics μ̂ and σ̂ on the quantized network; and it is absorbed again. The scale goes into the
weight's scales, so the integers stay. Layer by layer, each behind those tuned before it. Where a
weight has one scale for all channels, and where a channel is constant, only means are tuned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxquant.capture.naming import target_name
from fxquant.errors import CalibrationError
from fxquant.graph.submodules import own_all
from fxquant.modules.layers import as_layer, channel_axis, num_outputs
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.numerics.decibels import sqnr
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import CONVERTED
from fxquant.rounding.side_by_side import LayersSideBySide, Lesson
from fxquant.rounding.subgraphs import Call, Subgraph, find_subgraphs
from fxquant.streaming.distributed import sum_over_ranks
from fxquant.streaming.long_runs import bar
from fxquant.streaming.value_store import ValueStore

_FURTHEST = 2.0
"""ρ is held within [1/2, 2]: of a channel that quantization all but erased, σ̂ says nothing."""


@dataclass(frozen=True, eq=False)
class TuneBatchNorm(Lesson, Pass):
    """Give each quantized layer's output channels the float layer's mean and deviation.

    Nothing is drawn and nothing kept: of `options` only `max_bytes` counts, of `how` the bar.
    """

    starts_from = CONVERTED

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise where there is no data, or the reference is not of the same graph."""
        subgraphs = find_subgraphs(graph_module)
        self.require(call.node for subgraph in subgraphs for call in subgraph.calls)

    @torch.no_grad()
    def run(self, gm: fx.GraphModule) -> bool:
        """Tune the layers in turn; modified if there is one."""
        own_all(gm, QuantizedLayer)
        subgraphs = [_before_activation(subgraph) for subgraph in find_subgraphs(gm)]
        with ValueStore(self.options.max_bytes) as store:
            sides = LayersSideBySide(self, gm, subgraphs, store)
            for subgraph in bar(subgraphs, "tuning", self.how.progress, unit="layer"):
                layer = subgraph.layer
                _tune(layer, sides.rows(subgraph), target_name(gm, subgraph.name))
                weight = as_layer(self.reference.get_submodule(subgraph.name)).weight.detach()
                layer.weight_sqnr = sqnr(weight.float(), layer.weight.float())
        return bool(subgraphs)


def _before_activation(subgraph: Subgraph) -> Subgraph:
    """Return the layer with its own result as the target."""
    return replace(subgraph, calls=tuple(Call(call.node, call.node) for call in subgraph.calls))


def _tune(layer: QuantizedLayer, rows: Iterator[tuple[Tensor, Tensor]], name: str) -> None:
    channels = num_outputs(as_layer(layer))
    device = layer.weight_integers.device
    ours, floats = _Moments(channels, device), _Moments(channels, device)
    axis = channel_axis(as_layer(layer))
    for inputs, target in rows:
        ours.add(layer(inputs), axis)
        floats.add(target, axis)
    (our_mean, our_deviation), (mean, deviation) = ours.result(), floats.result()
    if not torch.isfinite(our_mean + our_deviation + mean + deviation).all():
        raise CalibrationError(
            f"{name}: NaN or infinity in its output on the calibration data: look at the calls "
            "before it, or leave it in float with a Rule(…, skip=True)"
        )
    ratio = torch.ones_like(deviation)
    if layer.weight_scale.dim():
        usable = (deviation > 0) & (our_deviation > 0)
        ratio = torch.where(usable, deviation / our_deviation, ratio)
        ratio = ratio.clamp(1 / _FURTHEST, _FURTHEST)
        layer.weight_scale.mul_(ratio.to(layer.weight_scale.dtype))
    layer.set_bias((layer.bias_values() - our_mean) * ratio + mean)


class _Moments:
    """Mean and standard deviation of each channel over batches."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self._sums = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, y: Tensor, axis: int) -> None:
        """Count a batch, (N, …), or one sample, with its channels along `axis`, from the end."""
        values = y.to(torch.float64).movedim(axis, 0).reshape(y.shape[axis], -1)
        self._sums += torch.stack([values.sum(dim=1), values.square().sum(dim=1)])
        self._count += values.shape[1]

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation, float64 (channels,), over all ranks."""
        sum_over_ranks(self._sums, self._count)
        mean, square = self._sums / self._count
        return mean, (square - mean.square()).clamp_min(0).sqrt()
