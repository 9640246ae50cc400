"""From a calibrated model and a judge to an `Analysis`: what is tried, in which order.

sides ─▶ ranking ─▶ the costliest with more bits, one by one ─▶ several ─▶ others ─▶ together
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fxquant.analysis.bench import Bench, silent
from fxquant.analysis.distributions import Distribution, distributions_of, own_losses
from fxquant.analysis.judge import Judge, Score, margin_of
from fxquant.analysis.outliers import Outlier, channel_peaks, outliers_of
from fxquant.analysis.ranking import (
    TensorCost,
    drawn_calls,
    probes_of,
    rank,
    rules_for,
)
from fxquant.analysis.remedies import Change, Remedy, next_steps, possible_changes, together
from fxquant.analysis.result import Analysis, Effort, Part
from fxquant.analysis.variants import (
    activations_only,
    quantizes_activations,
    quantizes_weights,
    weights_only,
)
from fxquant.errors import FxquantError
from fxquant.recipe.recipe import Recipe

_logger = logging.getLogger("fxquant")
_SINGLES = 4  # of each of two orders, tried one by one
_SETS = (3, 6)  # of the costliest, tried together
_FIRST = 3  # remedies that are tried together


@dataclass(frozen=True)
class Data:
    """How many samples there are, which part judges, and when all began."""

    num_samples: int
    num_judged: int
    is_held_out: bool
    float_seconds: float
    """Of one run of the float model over all of them, in the processor's time: others share it."""
    started: float
    """By `time.perf_counter`."""
    started_cpu: float
    """By `time.process_time`."""


class Study:
    """Tries recipes, and keeps what they are worth.

    Args:
        bench: of the recipe that is studied.
        judge: of models.
        asked: the caller's recipe, which may learn.
        steps: counts what is done.
    """

    def __init__(self, bench: Bench, judge: Judge, asked: Recipe, steps: Iterator[Any]) -> None:
        self._bench, self._judge, self._asked, self._steps = bench, judge, asked, steps
        self.base = self._score(bench.recipe)

    def analysis(self, data: Data, num_ranked: int) -> Analysis:
        """Return what was found."""
        bench, recipe = self._bench, self._bench.recipe
        scores: dict[Part, Score] = {"both": self.base}
        if quantizes_weights(recipe) and quantizes_activations(recipe):
            scores["weights"] = self._score(weights_only(recipe))
            scores["activations"] = self._score(activations_only(recipe))
        distributions, outliers = self._facts(num_ranked)
        next(self._steps, None)
        ranking = rank(bench, num_ranked, own_losses(distributions))
        costs = self._with_singles(ranking.costs)
        tried = [self._single(costs)]
        tried += [self._tried(change) for change in self._more_bits(costs)]
        fewest = min((each.bits for each in costs if each.side == "weights"), default=8)
        tried += [self._tried(change) for change in possible_changes(recipe, fewest)]
        remedies, in_vain = self._parted(tried)
        several = _compatible(remedies)
        if len(several) > 1:
            joined = self._tried(together(several))
            if joined is not None and self._order(joined) > self._order(remedies[0]):
                remedies = [joined, *remedies]
        return Analysis(
            costs=costs,
            remedies=tuple(remedies),
            outliers=tuple(outliers),
            recipe=recipe,
            scores=scores,
            float_score=self._judge.float_score,
            is_metric=self._judge.is_metric,
            effort=Effort(
                num_samples=data.num_samples,
                num_judged=data.num_judged,
                is_held_out=data.is_held_out,
                num_ranked=ranking.num_samples,
                num_decisions=self._judge.num_decisions,
                seconds=time.perf_counter() - data.started,
                forwards=(time.process_time() - data.started_cpu) / max(data.float_seconds, 1e-9),
            ),
            explained=ranking.explained,
            in_vain=tuple(in_vain),
            next_steps=tuple(next_steps(recipe, fewest)),
            learning_off=_what_is_off(self._asked),
            distributions=tuple(distributions),
            total_bytes=sum(each.num_weights * each.bits // 8 for each in costs),
            every=costs,
        )

    def _score(self, recipe: Recipe) -> Score:
        next(self._steps, None)
        return self._judge(self._bench.quantized(recipe))

    def _tried(self, change: Change) -> Remedy | None:
        """Return what a change wins; None where it cannot be made."""
        try:
            score = self._score(change.applied_to(self._bench.recipe))
        except FxquantError as error:  # options that do not go together, a model of other kinds
            _logger.info("analyze: %s: not tried: %s", change.title, error)
            return None
        won = _difference(score, self.base)
        return Remedy(change, won.points, won.decibels, change.applied_to(self._asked))

    def _facts(self, num_samples: int) -> tuple[list[Distribution], list[Outlier]]:
        """Return distributions and outliers of what the recipe rounds."""
        bench = self._bench
        calls, _ = drawn_calls(bench, num_samples)
        with silent():
            probes = probes_of(bench)
            peaks = channel_peaks(bench.prepared, calls)
        return distributions_of(probes), outliers_of(probes, peaks, bench.recipe)

    def _with_singles(self, costs: Sequence[TensorCost]) -> tuple[TensorCost, ...]:
        """Return `costs` in order, the first of them tried with more bits one by one."""
        alone = sorted(costs, key=lambda each: float("inf") if each.alone is None else each.alone)
        first = list(dict.fromkeys([*costs[:_SINGLES], *alone[:_SINGLES]]))
        found = {}
        for cost in first:
            tried = self._tried(self._raised([cost], costs))
            if tried is not None:
                found[cost] = replace(cost, measured=Score(tried.points, tried.decibels))
        measured = sorted(found.values(), key=_measured, reverse=True)
        ordered = [*measured, *(each for each in costs if each not in found)]
        return tuple(replace(each, place=place) for place, each in enumerate(ordered, start=1))

    def _single(self, costs: Sequence[TensorCost]) -> Remedy | None:
        """Return more bits for the first tensor alone, which was tried."""
        if not costs or costs[0].measured is None:
            return None
        change, won = self._raised(costs[:1], costs), costs[0].measured
        return Remedy(change, won.points, won.decibels, change.applied_to(self._asked))

    def _more_bits(self, costs: Sequence[TensorCost]) -> list[Change]:
        """Return more bits for several of the first."""
        counts = [count for count in _SETS if count < len(costs)]
        return [self._raised(costs[:count], costs) for count in counts]

    def _raised(self, chosen: Sequence[TensorCost], costs: Sequence[TensorCost]) -> Change:
        """Return more bits for `chosen`, of all `costs`."""
        widths = {each.more_bits for each in chosen}
        bits = "float" if widths == {None} else "8 bits" if None not in widths else "more bits"
        names = ", ".join(each.label for each in chosen)
        number = f"these {len(chosen)}: " if len(chosen) > 1 else ""
        rules = rules_for(chosen, costs, self._bench.recipe)
        more = sum(each.more_bytes for each in chosen)
        return Change(f"{bits} for {number}{names}", rules=rules, more_bytes=more)

    def _parted(self, tried: Sequence[Remedy | None]) -> tuple[list[Remedy], list[Remedy]]:
        """Return what helped, the best first, and what did not; not what changed nothing."""
        known = [each for each in tried if each is not None and (each.points or each.decibels)]
        helped = [each for each in known if each.helps(self._margin)]
        return self._sorted(helped), [each for each in known if each not in helped]

    def _sorted(self, remedies: Sequence[Remedy]) -> list[Remedy]:
        return sorted(remedies, key=self._order, reverse=True)

    def _order(self, remedy: Remedy) -> tuple[float, float]:
        return remedy.order(self._margin)

    @property
    def _margin(self) -> float:
        """The standard error of points; 0 where nobody can tell."""
        count, points = self._judge.num_decisions, self.base.points
        return 0.0 if count is None or points is None else margin_of(points, count)


def _difference(score: Score, base: Score) -> Score:
    points = decibels = None
    if score.points is not None and base.points is not None:
        points = score.points - base.points
    if score.decibels is not None and base.decibels is not None:
        decibels = 0.0 if score.decibels == base.decibels else score.decibels - base.decibels
    return Score(points, decibels)


def _measured(cost: TensorCost) -> tuple[float, float]:
    assert cost.measured is not None
    return cost.measured.decibels or 0.0, cost.measured.points or 0.0


def _compatible(remedies: Sequence[Remedy]) -> list[Change]:
    """Return the changes of the first remedies, of those with rules the first alone."""
    chosen: list[Change] = []
    for remedy in remedies:
        change = remedy.change
        has_rules = any(each.rules for each in chosen)
        if len(chosen) < _FIRST and not (change.rules and has_rules):
            chosen.append(change)
    return chosen


def _what_is_off(asked: Recipe) -> str:
    if asked.budget is not None:
        return "Its budget is left out here: every layer has the bits of the recipe's specs."
    if asked.reconstruction is not None:
        method = asked.reconstruction.method
        return (
            f"What it learns ({method}) is left out here: weights are rounded to nearest, and "
            "remedies are what they win there."
        )
    return ""
