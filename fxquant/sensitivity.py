"""How much each width of each weight and activation changes the outputs, in one pass over data.

    E[(∂(vᵀy)/∂W · ΔW)²] = E[(vᵀ J ΔW)²] = ‖J ΔW‖²        v = ±1 at random, J = ∂y/∂W

y are all of the model's outputs, ΔW = Ŵ - W the error of rounding W. To first order J ΔW is what
that does to y, and ‖J ΔW‖² the quadratic form of ΔW with the Gauss-Newton matrix JᵀJ, the Hessian
of half the squared change of the outputs. The random signs are Hutchinson's ("A stochastic
estimator of the trace", 1990), as in HAWQ (Dong et al., "HAWQ-V2: Hessian aware trace-weighted
quantization", 2020), which multiplies the Hessian's mean eigenvalue by ‖ΔW‖²; here the form itself
is taken. The gradients of one backward pass serve all layers and all widths.

Signs differ from sample to sample, so the products of different samples are 0 in the mean, and the
square of a batch's sum estimates the sum of its samples' squares. The same holds for activations,
with the gradient of each and the error of rounding it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from fxquant.budget import Budget, Option, Side
from fxquant.calibration import find_observers, was_called
from fxquant.distributed import gather_objects
from fxquant.dynamic import DynamicQuantize
from fxquant.errors import CalibrationError
from fxquant.fakequant import FakeQuantize, QuantizedLayer, quantize_layer
from fxquant.inputs import (
    arguments_of,
    find_keeper,
    in_batches_of,
    keep_inputs,
    stop_keeping_inputs,
)
from fxquant.keeper import Arguments, num_samples
from fxquant.layers import Layer
from fxquant.meta import record
from fxquant.observers import ChannelMean
from fxquant.operations import (
    concat_inputs,
    data_input,
    is_add,
    is_average,
    keeps_values,
    module_of,
)
from fxquant.passes import AbsorbBatchNorm, ChooseRanges, DropObservers, FoldBatchNorm
from fxquant.pipeline import Pipeline
from fxquant.probes import ActivationProbe, Group, Tap, WeightProbe
from fxquant.recipe import Recipe
from fxquant.region import find_regions
from fxquant.selection import call_name, select_calls
from fxquant.spec import TensorSpec
from fxquant.states import require_prepared
from fxquant.streaming import device_of
from fxquant.values import map_leaves

_SIDES: tuple[Side, ...] = ("weights", "activations")
_logger = logging.getLogger("fxquant")


def measure_sensitivities(
    prepared: nn.Module,
    batches: Iterable[Any],
    budget: Budget,
    *,
    draws: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Option]:
    """Return what each width of each quantized weight and activation does to the outputs.

    Weights and activations are rounded to nearest in the ranges of the recipe, but for the width;
    `Recipe.mixed` counts what learned roundings leave instead. What a rule of the
    recipe gives a width keeps it, and what the recipe leaves in float is left out.

    Args:
        prepared: what `prepare` returned, calibrated; left as it is.
        batches: inputs, as in `calibrate`.
        budget: whose widths are measured; its limits do not matter here.
        draws: of random signs for each batch; each costs a backward pass.
        batch_size: samples that run at a time, where a batch can be split. A loss is the mean of
            the squares of about normal variables, one for each batch and draw: of 64 it is off by
            √(2/64), 18 %.
        seed: of the signs.
        progress: show a bar; None means where there is a terminal.

    Returns:
        The options of one name and side after those of another: weights first, in execution order.

    Raises:
        PassError: `prepared` did not come from `prepare`.
        CalibrationError: it has seen no batch, `batches` is empty, the outputs have no gradient, or
            one is not finite.
    """
    calls = (
        arguments_of(prepared, batch, f"batch {number}") for number, batch in enumerate(batches)
    )
    total = len(batches) if isinstance(batches, Sized) else None
    bar = tqdm(
        calls,
        "measuring",
        total,
        disable=None if progress is None else not progress,
        delay=1,
        unit="batch",
    )
    return sensitivities_on(prepared, bar, budget, draws=draws, batch_size=batch_size, seed=seed)


def sensitivities_on(
    prepared: nn.Module,
    calls: Iterable[Arguments],
    budget: Budget,
    *,
    draws: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    rounded: Mapping[int, nn.Module] | None = None,
) -> list[Option]:
    """Return `measure_sensitivities` for the arguments of calls.

    `rounded` are models with weights and biases learned at each width, whose errors count in place
    of those of rounding to nearest.
    """
    recipe = require_prepared(prepared, "measure_sensitivities")
    model = copy.deepcopy(prepared)
    rank = _unbatched_rank(model)
    model.requires_grad_(False)
    probes = _place_probes(model, recipe, budget, rounded or {})
    generator = torch.Generator().manual_seed(seed)
    samples = 0
    for number, arguments in enumerate(calls):
        for part in in_batches_of([arguments], batch_size, rank):
            samples += num_samples(part, rank)
            outputs = _outputs(model, part, f"batch {number}")
            for draw in range(draws):
                signs = [_signs(output, generator) for output in outputs]
                torch.autograd.backward(outputs, signs, retain_graph=draw < draws - 1)
                for probe in probes:
                    probe.add_up()
    samples = sum(gather_objects(samples))
    if samples == 0:
        raise CalibrationError("measure_sensitivities: `batches` is empty: give at least one batch")
    return [option for probe in probes for option in probe.options(samples, draws)]


def _unbatched_rank(model: nn.Module) -> int | None:
    """Return how many axes the model's input has without a batch axis; drop what it kept."""
    if find_keeper(model) is None:
        keep_inputs(model, 1)
    keeper = find_keeper(model)
    assert keeper is not None
    stop_keeping_inputs(model)
    return keeper.unbatched_rank


def _outputs(model: nn.Module, arguments: Arguments, where: str) -> list[Tensor]:
    """Run the model; return those of its outputs that have a gradient."""
    device = device_of(model)
    moved = map_leaves(
        arguments,
        # a copy: a model may write to its inputs
        lambda each: each.to(device, copy=True) if isinstance(each, Tensor) else each,
    )
    with torch.enable_grad():
        leaves = tree_leaves(model(*moved))
    outputs = [each for each in leaves if isinstance(each, Tensor) and each.requires_grad]
    if not outputs:
        raise CalibrationError(
            f"{where}: none of the model's outputs has a gradient, so nothing tells what roundings "
            "do to them: return floating-point tensors that are not detached"
        )
    return outputs


def _signs(output: Tensor, generator: torch.Generator) -> Tensor:
    """Return -1 or 1 at random for each value of `output`."""
    ones = torch.randint(0, 2, output.shape, generator=generator)
    return (2 * ones - 1).to(output.device, output.dtype)


def _place_probes(
    model: nn.Module, recipe: Recipe, budget: Budget, rounded: Mapping[int, nn.Module]
) -> list[WeightProbe | ActivationProbe]:
    """Put into `model`, which computes the same after, what the probes read; return these."""
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
            fixed |= {(side, name) for side in _fixed_sides(recipe, name, module)}
            if module is not None and call.weights is None:
                continue
            if module is not None and not any(module in known for known in layers.values()):
                layers.setdefault(name, []).append(cast(Layer, module))
                places[cast(Layer, module)] = path, str(node.target)
                specs.setdefault(name, cast(TensorSpec, call.weights))
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
    observers = {
        str(node.target).rpartition(".")[2]: observer for node, _, observer in find_observers(gm)
    }
    ChooseRanges()(gm)
    for name, module in list(gm.named_modules()):
        if isinstance(module, (FakeQuantize, DynamicQuantize)):
            gm.add_submodule(name, Tap(observers[name.rpartition(".")[2]]))


def _taps_read(gm: fx.GraphModule, node: fx.Node) -> list[Tap]:
    """Return the taps of all activations whose width the call's rules decide over.

    Past calls that keep values; an average's input has the width of its result.
    """
    waiting: list[fx.Node | None] = [data_input(node)]
    if is_add(gm, node):
        waiting = list(node.all_input_nodes)
    found: list[Tap] = []
    while waiting:
        source = waiting.pop()
        if source is None:
            continue
        module, before = module_of(gm, source), data_input(source)
        if isinstance(module, Tap):
            found.append(module)
            if before is not None and is_average(gm, before):
                waiting.append(data_input(before))
        elif concat_inputs(source) is not None:
            waiting += concat_inputs(source) or []
        elif keeps_values(gm, source) or record(source).fused_into is not None:
            waiting.append(before)
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
