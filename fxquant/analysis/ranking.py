"""Weights and activations by what they cost the model's output, with what more bits would win.

Two figures for each, both in dB of the model's outputs: what is left of them where this tensor
alone is rounded (first order, at the float network), and what more bits win where all are (its
share of the whole change). Neither is the tensor's own dB, which says nothing of what the layers
behind it make of its error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from fxquant.analysis.bench import Bench, silent
from fxquant.analysis.judge import Score
from fxquant.analysis.shares import Key, Shares, measure_shares
from fxquant.analysis.variants import quantizes_weights, with_weight_bits
from fxquant.calibration.input_keeper import unbatched_rank_of
from fxquant.calibration.regrouping import takes_size
from fxquant.calling.batching import Batches
from fxquant.capture.naming import find_regions
from fxquant.graph.selection import select_calls
from fxquant.mixed_precision.allocation import rules_of
from fxquant.mixed_precision.options import Option, Side
from fxquant.mixed_precision.placing import place_probes
from fxquant.mixed_precision.probes import ActivationProbe, WeightProbe
from fxquant.mixed_precision.sensitivity import sensitivities_on
from fxquant.modules.copies import copy_module
from fxquant.numerics.decibels import decibels
from fxquant.recipe.budget import Budget
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.rule import Rule
from fxquant.streaming.running import Arguments

_PART = 4  # samples that run at a time
_LEAST_LEFT = 1e-3  # of the change: what is won is an estimate, and may be all of it


@dataclass(frozen=True, kw_only=True)
class TensorCost:
    """What rounding one tensor costs the model's output."""

    name: str
    """The call, as rules know it; of activations: the first one that reads them."""
    side: Side
    bits: int
    more_bits: int | None
    """What it would be given; None: it would stay in float."""
    own: float | None
    """Signal over rounding error of the tensor itself, in dB."""
    alone: float | None
    """Signal over change of the model's outputs with nothing else rounded, in dB."""
    share: float | None
    """How much of the change that all roundings make together is due to this one; percent."""
    wins: float | None
    """By how many dB the outputs come closer to the float model's without that: an estimate."""
    measured: Score | None = None
    """What more bits here won, on held-out data; None: not tried."""
    place: int = 0
    """1: the costliest."""
    num_weights: int = 0
    multiply_adds: int = 0
    readers: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name, with the side."""
        return f"{self.name} {'weights' if self.side == 'weights' else 'input'}"

    @property
    def more_bytes(self) -> int:
        """What more bits take, of the file: activations take none."""
        more = 32 if self.more_bits is None else self.more_bits
        return self.num_weights * (more - self.bits) // 8


def more_bits(side: Side, bits: int) -> int | None:
    """Return to how many bits a tensor would be raised; None: left in float.

    >>> more_bits("activations", 4), more_bits("weights", 8)
    (8, None)
    """
    return 8 if bits < 8 else None


@dataclass(frozen=True)
class Ranking:
    """All weights and activations that a recipe rounds, the costliest first."""

    costs: tuple[TensorCost, ...]
    num_samples: int
    """How many were run, with gradients."""
    explained: float | None
    """The sum of all shares over the change that they are shares of; None: not measured."""


def rank(bench: Bench, num_samples: int, own: Mapping[Key, float]) -> Ranking:
    """Return what each tensor costs the outputs.

    Args:
        bench: of the recipe.
        num_samples: how many of the calibration samples are run, with gradients.
        own: of each tensor, its own signal over rounding error in dB, where that is known.
    """
    calls, taken = drawn_calls(bench, num_samples)
    budget = _budget(bench)
    rounded = _rounded(bench, budget.weight_bits)
    with silent():
        options = sensitivities_on(
            bench.prepared,
            calls,
            budget,
            batch_size=_PART,
            rounded=rounded,
            keep_rules=False,
        )
        shares = measure_shares(bench.prepared, calls, budget, rounded, taken)
    known = {(each.name, each.side, each.bits): each for each in options}
    costs = [_cost(key, known, shares, own.get(key)) for key in shares.of]
    total = sum(each.cost for each in shares.of.values() if each.cost is not None)
    explained = total / shares.loss if shares.loss else None
    return Ranking(tuple(sorted(costs, key=_by_estimate)), taken, explained)


def _by_estimate(cost: TensorCost) -> tuple[float, float]:
    """Return what ranks a tensor, the less the costlier: what more bits win, its cost alone."""
    return -(cost.wins or 0.0), math.inf if cost.alone is None else cost.alone


def rules_for(
    chosen: Iterable[TensorCost], costs: Iterable[TensorCost], recipe: Recipe
) -> tuple[Rule, ...]:
    """Return the rules that give `chosen` more bits, one a call.

    A rule for the first layer or the last takes `end_bits` from it: there it says both sides.

    Args:
        chosen: of `costs`.
        costs: all of the recipe's.
        recipe: what the rules are to be put behind.
    """
    wanted: dict[str, dict[Side, int | None]] = {}
    for cost in chosen:
        for name in cost.readers or (cost.name,):
            wanted.setdefault(name, {})[cost.side] = cost.more_bits
    if recipe.end_bits or recipe.target.end_bits:
        for cost in costs:
            for name in cost.readers or (cost.name,):
                if name in wanted:
                    wanted[name].setdefault(cost.side, cost.bits)
    return rules_of(wanted)


def _cost(
    key: Key,
    known: Mapping[tuple[str, Side, int], Option],
    shares: Shares,
    own: float | None,
) -> TensorCost:
    (name, side), share = key, shares.of[key]
    option = known.get((name, side, share.bits))
    is_known = option is not None and not option.fixed and shares.power > 0
    alone = decibels(shares.power, option.loss) if option is not None and is_known else None
    part = wins = None
    if share.cost is not None and shares.loss:
        part = 100 * share.cost / shares.loss
        left = max(1 - share.cost / shares.loss, _LEAST_LEFT)
        wins = -10 * math.log10(left)
    return TensorCost(
        name=name,
        side=side,
        bits=share.bits,
        more_bits=more_bits(side, share.bits),
        own=own,
        alone=alone,
        share=part,
        wins=wins,
        num_weights=0 if option is None else option.num_weights,
        multiply_adds=0 if option is None else option.multiply_accumulates,
        readers=() if option is None else option.readers,
    )


def probes_of(bench: Bench) -> list[WeightProbe | ActivationProbe]:
    """Return what watches weights and activations in a copy of the calibrated model."""
    model = copy_module(bench.prepared)
    return place_probes(model, bench.recipe, _budget(bench), {}, keep_rules=False)


def _budget(bench: Bench) -> Budget:
    """Return all widths that the recipe gives to some call."""
    weights: set[int] = set()
    activations: set[int] = set()
    for gm in find_regions(copy_module(bench.prepared)).values():
        for call in select_calls(gm, bench.recipe).values():
            weights |= {call.weights.bits} if call.weights is not None else set()
            activations |= {call.activations.bits} if call.activations is not None else set()
    of_weights, of_activations = (tuple(each) or (8,) for each in (weights, activations))
    return Budget(average_bits=8, weight_bits=of_weights, activation_bits=of_activations)


def _rounded(bench: Bench, widths: Sequence[int]) -> dict[int, nn.Module]:
    """Return models at each width, where a correction changes biases: that counts too."""
    if not bench.recipe.bias_correction or not quantizes_weights(bench.recipe):
        return {}
    plain = replace(bench.recipe, batchnorm_tuning=False, smoothing=False)
    return {bits: bench.quantized(with_weight_bits(plain, bits)) for bits in widths}


def drawn_calls(bench: Bench, num_samples: int) -> tuple[list[Arguments], int]:
    """Return calls that hold about so many samples, evenly from all, and how many they hold."""
    rank_of_one = unbatched_rank_of(bench.prepared)
    whole = Batches(bench.inputs, rank_of_one)
    if takes_size(bench.prepared, whole, _PART):
        whole = whole.of_size(_PART)
    calls, size = whole.arguments, max(whole.sizes)
    wanted = min(len(calls), max(1, round(num_samples / size)))
    taken = [calls[number * len(calls) // wanted] for number in range(wanted)]
    return taken, Batches(taken, rank_of_one).num_samples
