"""Resolve a recipe's budget: measure the layers, allocate bits, write them down as rules."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fxquant.calibration.observed import find_observers
from fxquant.calling.batching import Batches
from fxquant.capture.naming import find_regions
from fxquant.errors import RecipeError
from fxquant.mixed_precision.allocation import Allocation, allocate
from fxquant.mixed_precision.options import Option
from fxquant.mixed_precision.sensitivity import sensitivities_on
from fxquant.modules.copies import copy_module
from fxquant.passes.convert.drop_observers import DropObservers
from fxquant.passes.pipeline import Pipeline
from fxquant.passes.prepare.insert_observers import InsertObservers
from fxquant.recipe.budget import Budget
from fxquant.recipe.recipe import Recipe
from fxquant.reporting.agreement import Agreement
from fxquant.streaming.long_runs import bar
from fxquant.streaming.running import Arguments, copied_to, device_of

_JUDGED = 0.25  # the share of the samples that tells the drop of a candidate
_PARTS = 128  # of the samples, each with signs of its own: so an estimate is off by some 9 %
_FINEST = 0.1  # bits a weight: what the search for the smallest model resolves
_logger = logging.getLogger("fxquant")
Quantize = Callable[[Recipe, Sequence[Arguments]], nn.Module]


def with_bits(
    prepared: nn.Module,
    recipe: Recipe,
    inputs: Sequence[Arguments],
    quantize: Quantize,
    progress: bool | None,
) -> Recipe:
    """Return `recipe` with rules, one for each layer, in place of its budget.

    Args:
        prepared: calibrated; left as it is.
        recipe: with a budget.
        inputs: the calibration data.
        quantize: makes a quantized model by a recipe without a budget, from data.
        progress: show a bar.
    """
    budget = recipe.budget
    assert budget is not None
    rounded = _rounded(recipe, budget, inputs, quantize, progress)
    samples = Batches(inputs).num_samples
    calls = bar(inputs, "measuring", progress)
    options = sensitivities_on(
        prepared, calls, budget, draws=2, batch_size=max(1, samples // _PARTS), rounded=rounded
    )
    if budget.max_drop is None:
        allocation = allocate(options, budget)
    else:
        allocation = _smallest(prepared, recipe, budget, options, inputs, quantize, progress)
    _logger.info("bits:\n%s", allocation)
    return _resolved(recipe, allocation)


def _rounded(
    recipe: Recipe,
    budget: Budget,
    inputs: Sequence[Arguments],
    quantize: Quantize,
    progress: bool | None,
) -> dict[int, nn.Module]:
    """Return models at each width, rounded on the Gram matrix, if the recipe learns roundings.

    What learning leaves of nearest rounding's error differs from layer to layer.
    """
    if recipe.reconstruction is None:
        return {}
    options = replace(recipe.data, method="gram", blocks=False, parallel=True)
    assert recipe.weights is not None, "a budget is for weights"
    weights = recipe.weights
    plain = replace(recipe, budget=None, reconstruction=options, batchnorm_tuning=False)
    return {
        bits: quantize(replace(plain, weights=replace(weights, bits=bits)), inputs)
        for bits in bar(budget.weight_bits, "rounding at each width", progress, unit="width")
    }


def _resolved(recipe: Recipe, allocation: Allocation) -> Recipe:
    return replace(recipe, rules=(*recipe.rules, *allocation.rules()), budget=None)


def _smallest(
    prepared: nn.Module,
    recipe: Recipe,
    budget: Budget,
    options: Sequence[Option],
    inputs: Sequence[Arguments],
    quantize: Quantize,
    progress: bool | None,
) -> Allocation:
    """Return the allocation of fewest bits that changes few enough decisions.

    Candidates are rounded on the Gram matrix, which is quick and close to what learning gives.
    """
    assert budget.max_drop is not None
    judged = max(1, round(_JUDGED * len(inputs)))
    if len(inputs) <= judged:
        raise RecipeError(
            f"max_drop={budget.max_drop}: {len(inputs)} batch of calibration data: give more, or "
            "smaller ones, so that some can judge"
        )
    learned, agreement = inputs[:-judged], Agreement(prepared, inputs[-judged:], "max_drop", _call)
    quick = replace(recipe, reconstruction=replace(recipe.data, method="gram", blocks=False))

    def drop(allocation: Allocation) -> float:
        return 100 - agreement(quantize(_resolved(quick, allocation), learned))

    def allocated(bits: float) -> Allocation:
        return allocate(options, replace(budget, average_bits=bits))

    low, high = float(min(budget.weight_bits)), float(max(budget.weight_bits))
    if budget.average_bits is not None:
        high = min(high, budget.average_bits)
    best = allocated(high)
    least = drop(best)
    if least > budget.max_drop:
        raise RecipeError(
            f"max_drop={budget.max_drop}: with {best.average_bits:.3g} bits a weight, the most "
            f"that the budget allows, {least:.2f} % of the decisions change: allow that, or wider "
            "weights"
        )
    halvings = math.ceil(math.log2(max(1.0, (high - low) / _FINEST)))
    for _ in bar(range(halvings), "looking for the smallest", progress, unit="allocation"):
        middle = (low + high) / 2
        candidate = allocated(middle)
        if drop(candidate) <= budget.max_drop:
            best, high = candidate, middle
        else:
            low = middle
    return best


def _call(model: nn.Module, arguments: Arguments) -> Any:
    return model(*copied_to(device_of(model), arguments))


def set_bits(model: nn.Module, recipe: Recipe) -> None:
    """Give the observers of `model` the bits that `recipe`'s rules ask for."""
    anew = find_regions(copy_module(model))
    for path, gm in find_regions(model).items():
        Pipeline(DropObservers(), InsertObservers(recipe))(anew[path])
        observers = {node.target: observer for node, _, observer in find_observers(gm)}
        for node, _, asked in find_observers(anew[path]):
            observer = observers[node.target]
            observer.spec = replace(observer.spec, bits=asked.spec.bits)
