"""Bring the channels of a layer's input to one range, and take it back in the weight.

Before:  norm = LayerNorm(h); observers_norm = Observer(norm); fc = Linear(observers_norm)
After:   the same graph, with γ/s, (β - c)/s in the norm, W · s and b + W c in the layer

Before:  gelu = F.gelu(fc1); observers_gelu = Observer(gelu); fc2 = Linear(observers_gelu)
After:   smoothed_gelu = ChannelAffine(gelu)     # (x - c)/s
         observers_gelu = Observer(smoothed_gelu); fc2 = Linear(observers_gelu)

Before:  relu = ReLU(conv1(x)); observers_relu = Observer(relu); conv2 = Conv2d(observers_relu)
After:   the same graph, with W₁/s, b₁/s in the first layer and s · W₂ in the second

Of a transformer's activations a few channels are many times as wide as the others, of a MobileNet's
between its convolutions many are, and a scale that serves all of them leaves most channels a few
integers. What is rescaled in front of a layer its weight can take back: (x - c)/s, W diag(s),
b + W c compute the same. Who made the tensor takes the scale where it can: a layer norm, or a layer
through a ReLU, a ReLU6, pooling (`EqualizeLayers`, which looks at weights alone). Else a linear
layer gets a call in front, on floats. A depthwise convolution with a scale for each channel has
nothing to lose by it.

Scales are tried, and chosen for each tensor by the error of what all layers behind compute, both
sides rounded as they will be (`fxquant.rounding.smoothing`). A tensor that gains less than
`least_gain` stays as it is. Then its observer sees the data again, and on the first batch the
layers must give what they gave before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxquant.errors import CalibrationError
from fxquant.graph.submodules import Submodules
from fxquant.modules.batchnorm import fold_before
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import OBSERVED
from fxquant.recipe.recipe import Recipe
from fxquant.rounding.smoothing.choice import best_smoothing
from fxquant.rounding.smoothing.inputs import LayerInput, find_inputs
from fxquant.rounding.smoothing.scales import Smoothing
from fxquant.rounding.smoothing.seen import look_at
from fxquant.rounding.smoothing.unchanged import SameResults
from fxquant.streaming.distributed import gather_objects
from fxquant.streaming.long_runs import Run, bar
from fxquant.streaming.running import Arguments
from fxquant.streaming.stream import Stream
from fxquant.streaming.value_store import ValueStore


@dataclass(frozen=True, eq=False)
class SmoothInputs(Pass):
    """Bring the channels of each layer's input to one range."""

    starts_from = OBSERVED

    recipe: Recipe
    batches: Sequence[Arguments]
    """The arguments of each call, on any device."""
    how: Run = field(default_factory=Run)
    least_gain: float = 3.0
    """dB by which the error of the layers' results must fall."""
    least_gain_between: float = 1.0
    """The same where a layer takes the scale: between two layers it costs nothing."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Raise where there is no data."""
        if len(self.batches) == 0:
            raise CalibrationError("`batches` is empty: give at least one")

    @torch.no_grad()
    def run(self, gm: fx.GraphModule) -> bool:
        """Smooth one tensor after the other; modified if one gains by it."""
        chosen: dict[LayerInput, Smoothing] = {}
        inputs = {each: each.rows_from for each in find_inputs(gm, self.recipe)}
        for each, values in self._values(gm, inputs, "smoothing"):
            seen = look_at(each, values)
            gain = self.least_gain_between if each.taker.layer else self.least_gain
            best = None if seen is None else best_smoothing(each, seen, gain)
            if best is not None:
                chosen[each] = best
        for each, values in self._values(
            gm, {each: [each.watched] for each in chosen}, "observing"
        ):
            _observe_anew(each, chosen[each], (value for (value,) in values))
        rescaled = {each.taker.layer for each in chosen}  # in front of another tensor
        layers = [layer for each in chosen for layer in each.layers if layer not in rescaled]
        proof = SameResults(gm, layers, self.batches[0], self.recipe.data.max_bytes)
        submodules = Submodules(gm)
        for each, smoothing in chosen.items():
            _write(each, smoothing, submodules)
        proof.require()
        return bool(chosen)

    def _values(
        self, gm: fx.GraphModule, nodes: dict[LayerInput, list[fx.Node]], title: str
    ) -> Iterator[tuple[LayerInput, Iterator[tuple[Tensor, ...]]]]:
        """Yield each tensor with the values of its nodes in all batches."""
        with ValueStore(self.recipe.data.max_bytes) as store:
            stream = Stream(gm, self.batches, store)
            stream.demand(node for each in nodes.values() for node in each)
            for each in bar(list(nodes), title, self.how.progress, unit="tensor"):
                yield each, stream.values(*nodes[each])


def _observe_anew(each: LayerInput, smoothing: Smoothing, values: Iterator[Tensor]) -> None:
    """Let the tensor's new observer see what the smoothed one will be, on all ranks."""
    for value in values:
        each.anew(smoothing(value, each.axis))
    each.anew.take_in(gather_objects(each.anew.state(), "the state of an observer"))


def _write(each: LayerInput, smoothing: Smoothing, submodules: Submodules) -> None:
    gm, device = each.gm, each.observer.low.device
    smoothing = Smoothing(smoothing.scale.to(device), smoothing.shift.to(device))
    for target in dict.fromkeys(str(node.target) for node in each.layers):
        fold_before(submodules.own(target), smoothing.scale, smoothing.shift)
    for mean in each.means:
        path = next(name for name, module in gm.named_modules() if module is mean)
        own = copy.deepcopy(mean)
        own.mean = smoothing(own.mean)
        submodules.put(path, own)
    each.taker.write(gm, smoothing, submodules)
    submodules.put(str(each.observed.target), each.anew)
