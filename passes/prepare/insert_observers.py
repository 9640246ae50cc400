"""Put an observer on each tensor that will be quantized.

Before:  conv1 = Conv2d(x); relu = ReLU(conv1); pool = MaxPool2d(relu); fc = Linear(pool)
After:   observers_x = Observer(x); conv1 = Conv2d(observers_x)
         observers_relu = Observer(conv1); relu = ReLU(observers_relu)
         pool = MaxPool2d(relu); fc = Linear(pool)

Quantized is each tensor that feeds a layer: its input `x`, and the output of the ReLU, whose values
max-pool hands on. The network's output is not. A tensor behind a fused ReLU is watched before it,
where its distribution is whole.

* Calls that keep values (max-pool, reshape, slice, zero padding) hand their input's parameters on.
* The inputs of a concatenation are watched one by one, and so is a part of a split or slice beside
  the whole: what shares parameters is decided by what was seen (`ChooseRanges`).
* An addition or an average whose result reaches a layer that way works on integers too, and so its
  operands are quantized; but not the result of a layer that feeds the addition alone: kernels add
  into the layer's accumulator.

Float operations (layer norm, softmax, SiLU) read the tensor past its observer, and so in float.
`fxquant.graph.placement` has the rules.

Channels get ranges of their own, if the recipe says so, where convolutions alone read the tensor,
directly, through pooling, or through additions.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from torch import fx, nn

from fxquant.capture.region import Region
from fxquant.graph.chains import insert_after
from fxquant.graph.channel_moments import Moments, channel_moments_of, range_of
from fxquant.graph.operations import data_input, module_of, readers, source_of
from fxquant.graph.placement import Placement
from fxquant.graph.records import annotate, record
from fxquant.graph.selection import record_calls_with_weights_inside, select_calls
from fxquant.graph.submodules import Submodules, free_name
from fxquant.modules.channel_observers import ChannelMean, ChannelObserver
from fxquant.modules.layers import as_layer, channel_axis, num_inputs
from fxquant.modules.observers import LogitObserver, Observer
from fxquant.modules.own import own_modules
from fxquant.passes.pipeline import Pass
from fxquant.passes.starting_points import TRACED
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.spec import CallSpec, TensorSpec


@dataclass(frozen=True, eq=False)
class InsertObservers(Pass):
    """Put an observer on each tensor that will be quantized."""

    starts_from = TRACED

    recipe: Recipe = field(default_factory=Recipe)

    def run(self, gm: fx.GraphModule) -> bool:
        """Insert `Observer`s, and `ChannelMean`s if the recipe corrects biases."""
        if any(module.watches for _, module in own_modules(gm)):
            return False
        calls = select_calls(gm, self.recipe)
        record_calls_with_weights_inside(gm)
        placement = Placement(gm, calls, self.recipe.target)
        submodules = Submodules(gm)
        _insert(gm, placement, submodules)
        quantized = set(placement.places)
        logits = _insert_at_outputs(gm, self.recipe.for_outputs(), quantized, submodules)
        has_means = self.recipe.bias_correction is True and _insert_means(gm, calls, submodules)
        return bool(quantized) or logits or has_means


def _insert(gm: fx.GraphModule, placement: Placement, submodules: Submodules) -> None:
    container = free_name(gm, "observers")
    moments = channel_moments_of(gm)
    for node in placement.places:
        end, served = placement.end(node), placement.readers(node)
        clamp = _fused_bounds(node) if end is node else None
        watched = source_of(node) if clamp else node
        name = free_name(gm, f"{container}.{node.name}")
        observer = _observer(
            placement.spec(node), clamp, placement.axis(node), moments.get(watched)
        )
        submodules.put(name, observer)
        with insert_after(watched if end is node else end):
            call = gm.graph.call_module(name, (watched,))
        annotate(call, for_all=placement.is_for_all(node))
        for user in [node] if clamp else served:
            user.replace_input_with(watched, call)
        if clamp and len(served) < len(readers(gm, node)):
            annotate(call, serves=tuple(each.name for each in served))


def _observer(
    spec: TensorSpec,
    clamp: tuple[float, float] | None,
    axis: int | None,
    moments: Moments | None,
) -> Observer:
    """Return the observer that `spec` needs; of what batch norms tell, one that sees nothing."""
    if spec.range == "bn" and moments is not None:
        known = range_of(moments, clamp, per_channel=axis is not None)
        return Observer(spec, clamp, known, axis)
    if axis is None or spec.dynamic:
        return Observer(spec, clamp, axis=axis)
    return ChannelObserver(spec, clamp, axis)


def _insert_at_outputs(
    gm: fx.GraphModule,
    spec: TensorSpec | None,
    quantized: Set[fx.Node],
    submodules: Submodules,
) -> bool:
    """Watch what the model returns, if its recipe quantizes that; of a region it is no output."""
    if spec is None or isinstance(gm, Region):
        return False
    (output,) = gm.graph.find_nodes(op="output")
    container = free_name(gm, "logit_observers")
    for node in output.all_input_nodes:
        if node in quantized:
            continue
        name = free_name(gm, f"{container}.{node.name}")
        submodules.put(name, LogitObserver(spec))
        with insert_after(node):
            observer = gm.graph.call_module(name, (node,))
        output.replace_input_with(node, observer)
    return True


def _fused_bounds(node: fx.Node) -> tuple[float, float] | None:
    known = record(node)
    return known.clamp if known.fused_into else None


def _insert_means(
    gm: fx.GraphModule, calls: dict[fx.Node, CallSpec], submodules: Submodules
) -> bool:
    """Watch the mean input of each layer whose weight will be rounded."""
    container = free_name(gm, "input_means")
    names: dict[nn.Module, str] = {}
    for node, call in calls.items():
        layer, source = module_of(gm, node), data_input(node)
        if layer is None or source is None or call.weights is None:
            continue
        if layer not in names:
            path = str(node.target).replace(".", "_")
            names[layer] = free_name(gm, f"{container}.{path}")
            known = as_layer(layer)
            submodules.put(names[layer], ChannelMean(num_inputs(known), channel_axis(known)))
        with gm.graph.inserting_before(node):
            mean = gm.graph.call_module(names[layer], (source,))
        node.replace_input_with(source, mean)
    return bool(names)
