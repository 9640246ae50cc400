"""Take the mean error that a rounded weight makes out of the layer's bias.

Before:  input_means_conv = ChannelMean(x); conv = QuantizedConv2d(input_means_conv)
After:   conv = QuantizedConv2d(x)     # b' = b - Σ (Ŵ - W) · E[x]

E[x] is the mean of each input channel, seen in calibration; zero padding is not accounted for
(Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, 4.2).
The bias is in floating point, so the result can be lowered as it is; the correction of the report's
I.F, which changes the weights themselves, cannot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxquant.errors import PassError
from fxquant.graph.chains import take_out
from fxquant.graph.operations import module_of
from fxquant.graph.records import refuse
from fxquant.graph.submodules import Submodules
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.layers import Layer, as_layer, is_transposed, output_rows, per_input
from fxquant.modules.quantized_layer import QuantizedLayer
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import OBSERVED


@dataclass(frozen=True, eq=False)
class CorrectBias(Pass):
    """Take the mean error that a rounded weight makes out of the layer's bias."""

    starts_from = OBSERVED

    reference: fx.GraphModule
    """The model before `QuantizeWeights`: its layers, by the same names, hold the float weights."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise `PassError` if a layer with a mean is not quantized, or not in the reference."""
        names = {name for name, _ in self.reference.named_modules()}
        for _, layer, _ in _find_means(graph_module):
            if str(layer.target) not in names:
                raise PassError(f"the reference has no module {layer.target!r}")
            if not isinstance(module_of(graph_module, layer), QuantizedLayer):
                raise PassError(f"{layer.target!r} is float: run QuantizeWeights first")

    def run(self, gm: fx.GraphModule) -> bool:
        """Correct each layer behind a `ChannelMean` once, and remove the `ChannelMean`s."""
        submodules = Submodules(gm)
        corrected = set()
        containers = set()
        for node, layer, mean in list(_find_means(gm)):
            if mean.num_values == 0:
                refuse(layer, "bias not corrected", "no finite batch seen in calibration")
            elif layer.target not in corrected:
                _correct(
                    submodules.own(str(layer.target)),
                    as_layer(self.reference.get_submodule(str(layer.target))),
                    mean.mean,
                )
            corrected.add(layer.target)
            containers.add(str(node.target).rpartition(".")[0])
            take_out(node)
        submodules.drop_unused(containers)
        return bool(corrected)


def _find_means(gm: fx.GraphModule) -> list[tuple[fx.Node, fx.Node, ChannelMean]]:
    """Return each `ChannelMean` call with the layer call behind it and its module."""
    return [
        (node, next(iter(node.users)), module)
        for node in gm.graph.nodes
        if isinstance(module := module_of(gm, node), ChannelMean)
    ]


def _correct(layer: QuantizedLayer, reference: Layer, mean: torch.Tensor) -> None:
    """Write the corrected bias into `layer`, as a new parameter."""
    weight = reference.weight.detach().to(torch.float32)
    error = layer.weight.to(torch.float32) - weight
    shift = output_rows(reference, error * per_input(reference, mean, weight)).sum(dim=1)
    if is_transposed(reference):  # an output position sees one tap in `stride` along each axis
        assert not isinstance(reference, nn.Linear)
        shift = shift / math.prod(reference.stride)
    layer.set_bias(layer.bias_values() - shift)
