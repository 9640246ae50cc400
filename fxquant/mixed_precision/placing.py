"""Probes in a prepared model: what each width of each weight and activation would change there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx, nn

from fxquant.calibration.observed import (
    observers_of_values,
    place_observers,
    was_called,
)
from fxquant.capture.naming import find_regions
from fxquant.graph.operations import (
    data_input,
    is_product,
    module_of,
    operation_of,
    sources_of_values,
)
from fxquant.graph.records import record
from fxquant.graph.selection import call_name, select_calls
from fxquant.mixed_precision.options import Side
from fxquant.mixed_precision.probes import ActivationProbe, Group, Tap, WeightProbe
from fxquant.modules.channel_observers import ChannelMean
from fxquant.modules.layers import Layer, as_layer
from fxquant.modules.observers import Observer
from fxquant.modules.own import as_own
from fxquant.modules.quantized_layer import QuantizedLayer, quantize_layer
from fxquant.passes.convert.choose_ranges import ChooseRanges
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.convert.keep_floats import KeepFloats
from fxquant.passes.pipeline import Pipeline
from fxquant.passes.prepare.absorb_batchnorm import AbsorbBatchNorm
from fxquant.passes.prepare.fold_batchnorm import FoldBatchNorm
from fxquant.recipe.budget import Budget
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.spec import TensorSpec

_SIDES: tuple[Side, ...] = ("weights", "activations")


def place_probes(
    model: nn.Module,
    recipe: Recipe,
    budget: Budget,
    rounded: Mapping[int, nn.Module],
    *,
    keep_rules: bool = True,
) -> list[WeightProbe | ActivationProbe]:
    """Put into `model`, which computes the same after, what the probes read; return these.

    `keep_rules`: what a rule of the recipe gives a width has no other.
    """
    layers: dict[str, list[Layer]] = {}
    specs: dict[str, TensorSpec] = {}
    groups: list[Group] = []
    fixed: set[tuple[Side, str]] = set()
    places: dict[Layer, tuple[str, str]] = {}
    for path, gm in find_regions(model).items():
        # Calibration told the ranks that were unknown before, as in `convert`.
        Pipeline(FoldBatchNorm(), AbsorbBatchNorm(), DropObservers((ChannelMean,)))(gm)
        _put_taps(gm)
        for node, call in select_calls(gm, recipe).items():
            name, module = call_name(gm, node), module_of(gm, node)
            if keep_rules:
                fixed |= {(side, name) for side in _fixed_sides(recipe, name, module)}
            is_known = any(module in known for known in layers.values())
            if module is not None and call.weights is not None and not is_known:
                layer = as_layer(module)
                layers.setdefault(name, []).append(layer)
                places[layer] = path, str(node.target)
                specs.setdefault(name, call.weights)
            if call.activations is not None:
                _join(groups, name, _taps_read(gm, node))
    learned = {bits: find_regions(each) for bits, each in rounded.items()}

    def at_width(layer: Layer, spec: TensorSpec) -> QuantizedLayer:
        path, target = places[layer]
        found = learned[spec.bits][path].get_submodule(target) if spec.bits in learned else None
        return found if isinstance(found, QuantizedLayer) else quantize_layer(layer, spec)

    probes: list[WeightProbe | ActivationProbe] = []
    for name, known in layers.items():
        is_fixed = ("weights", name) in fixed
        widths = (specs[name].bits,) if is_fixed else budget.weight_bits
        forms = [replace(specs[name], bits=bits) for bits in widths]
        own = {layer: [at_width(layer, spec) for spec in forms] for layer in known}
        probes.append(WeightProbe(name, own, specs[name].bits, widths, fixed=is_fixed))
    for group in groups:
        is_fixed = any(("activations", name) in fixed for name in group.readers)
        probes.append(ActivationProbe(group, None if is_fixed else budget.activation_bits))
    return probes


def _fixed_sides(recipe: Recipe, name: str, module: nn.Module | None) -> list[Side]:
    """Return the sides whose width a rule of the recipe names."""
    rules = [rule for rule in recipe.rules if rule.matches(name, module)]
    return [side for side in _SIDES if any(getattr(rule, side) != "inherit" for rule in rules)]


def _put_taps(gm: fx.GraphModule) -> None:
    """Put a tap where each activation's quantizer will be, in the place of its observer."""
    if not was_called(gm):
        DropObservers()(gm)
        return
    KeepFloats()(gm)
    seen = _observers_by_name(gm)
    ChooseRanges()(gm)
    for name, module in list(gm.named_modules()):
        if as_own(module).rounds:
            gm.add_submodule(name, Tap(seen[name.rpartition(".")[2]]))


def _observers_by_name(gm: fx.GraphModule) -> dict[str, list[Observer]]:
    """Return what each quantizer will be chosen by: of a tensor, or of all that a call joins."""
    observers = place_observers(gm)
    found = {node.name: seen for node, seen in observers_of_values(gm, observers).items()}
    own = {str(node.target).rpartition(".")[2]: [each] for node, each in observers.items()}
    return found | own


def _taps_read(gm: fx.GraphModule, node: fx.Node) -> list[Tap]:
    """Return the taps of all activations whose width the call's rules decide over.

    Past calls that keep values; an average's input has the width of its result.
    """
    waiting: list[fx.Node | None] = [data_input(node)]
    if operation_of(gm, node).kind == "add" or is_product(gm, node):
        waiting = list(node.all_input_nodes)
    found: list[Tap] = []
    while waiting:
        source = waiting.pop()
        if source is None:
            continue
        module, before = module_of(gm, source), data_input(source)
        if isinstance(module, Tap):
            found.append(module)
            if before is not None and operation_of(gm, before).kind == "average":
                waiting.append(data_input(before))
        elif record(source).fused_into is not None:
            waiting.append(before)
        else:
            waiting += sources_of_values(gm, source)
    return found


def _join(groups: list[Group], reader: str, taps: Sequence[Tap]) -> None:
    """Note that a call reads `taps`, and make one group of all that this connects."""
    if not taps:
        return
    touched = [
        group
        for group in groups
        if reader in group.readers or any(tap in group.taps for tap in taps)
    ]
    readers = [name for group in touched for name in group.readers] + [reader]
    known = [tap for group in touched for tap in group.taps] + list(taps)
    first = groups.index(touched[0]) if touched else len(groups)
    groups[:] = [group for group in groups if group not in touched]
    groups.insert(first, Group(list(dict.fromkeys(readers)), list(dict.fromkeys(known))))
