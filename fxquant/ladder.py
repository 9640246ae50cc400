"""Try recipes, cheapest first, until one loses little enough."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxquant.api import quantize
from fxquant.calling.arguments import Forward, call_on_batch
from fxquant.calling.description import described
from fxquant.calling.loaders import require_batches
from fxquant.capture.given_models import require_module, unwrapped
from fxquant.display.figures import Figure, Point, Points, Tile, Tiles
from fxquant.display.shown import Shown
from fxquant.display.table import Column, Table, Value
from fxquant.errors import CalibrationError, RecipeError, kind_of
from fxquant.mixed_precision.allocation import require_scipy
from fxquant.recipe.budget import Budget
from fxquant.recipe.recipe import Recipe
from fxquant.recipe.starts import FREE_BLOCKS
from fxquant.reporting.agreement import Agreement
from fxquant.reporting.running_copies import copy_to_run
from fxquant.reporting.table import report
from fxquant.streaming.distributed import gather_objects
from fxquant.streaming.long_runs import UnitsBar
from fxquant.streaming.said_once import said_once

_logger = logging.getLogger("fxquant")
_JUDGED = 4  # of so many batches one judges, where there is no `evaluate`


@dataclass(frozen=True)
class Rung:
    """One recipe of the ladder, and what it is called in the table."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Attempt:
    """What one rung gave."""

    rung: Rung
    score: float
    """In the metric's own unit, higher is better."""
    drop: float
    """The float model's score minus this one."""
    seconds: float
    """For quantizing; judging is not counted."""


_COLUMNS = (
    Column("rung", "rung", folds=True),
    Column("score", "score", "{:.2f}", is_bar=True),
    Column("drop", "drop", "{:.2f}"),
    Column("seconds", "s", "{:.1f}"),
    Column("verdict", "", folds=True),
)


@dataclass(frozen=True, eq=False, repr=False)
class Search(Shown):
    """What `search` found: `str()` of it is the table of all rungs tried."""

    model: nn.Module
    """The quantized model of the first rung that met the target, else of the best."""
    recipe: Recipe
    met: bool
    """Whether it met the target."""
    max_drop: float
    float_score: float
    attempts: tuple[Attempt, ...]

    def heads(self) -> list[str]:
        """Return which rung was taken, and what it loses."""
        taken = next(each for each in self.attempts if each.rung.recipe is self.recipe)
        verdict = "met" if self.met else "not met; this is the best"
        return [
            f"{taken.rung.name}: {taken.score:.2f} of {self.float_score:.2f}, "
            f"{taken.drop:.2f} below float; at most {self.max_drop:g} was asked for: {verdict}",
            f"recipe: {self.recipe!r}",
        ]

    def tables(self) -> list[Table]:
        """Return a row for each rung that was tried, behind one for the float model."""
        rows: list[tuple[Value, ...]] = [("float", self.float_score, None, None, None)]
        for attempt in self.attempts:
            chosen = attempt.rung.recipe is self.recipe
            verdict = "taken" if self.met else "the best, target not met"
            values = attempt.rung.name, attempt.score, attempt.drop, attempt.seconds
            rows.append((*values, verdict if chosen else None))
        return [Table(_COLUMNS, tuple(rows))]

    def figures(self) -> list[Figure]:
        """Return the key numbers, and each rung's score against the seconds that it took."""
        taken = next(each for each in self.attempts if each.rung.recipe is self.recipe)
        points = tuple(
            Point(
                each.rung.name,
                each.seconds,
                each.score,
                f"{each.score:.2f}, {each.seconds:.1f} s",
                is_chosen=each is taken,
            )
            for each in self.attempts
        )
        tiles = (
            Tile("Score", f"{taken.score:.2f}", f"float: {self.float_score:.2f}"),
            Tile("Below float", f"{taken.drop:.2f}", f"at most {self.max_drop:g} was asked for"),
            Tile("Taken" if self.met else "Best, target not met", taken.rung.name),
            Tile("Seconds", f"{sum(each.seconds for each in self.attempts):.0f}", "of all rungs"),
        )
        target = [("target", self.float_score - self.max_drop)] if self.max_drop else []
        levels = ("float", self.float_score), *target
        return [Tiles(tiles), Points("Rungs", "seconds", "score", points, levels)]

    def parts(self) -> list[Shown]:
        """Return the report of the model that was taken."""
        return [report(self.model)]


def ladder(weight_bits: int = 8, activation_bits: int | None = 8) -> tuple[Rung, ...]:
    """Return the rungs that `search` tries, cheapest first.

    All but the last give every layer the same bits, those that learn with less than 6 activation
    bits the first layer and the last 8; the last gives the weights `weight_bits` on average
    (`Recipe.mixed`).
    """
    bits: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    layers = {**bits, "blocks": False}
    budget = Budget(average_bits=weight_bits)
    return (
        Rung("nearest, min-max", Recipe.minmax(**bits)),
        Rung("ACIQ", Recipe.aciq(**bits, bias_correction=False)),
        Rung("ACIQ, equalized", Recipe.aciq(**bits, bias_correction=False, equalization=True)),
        Rung("ACIQ, biases corrected", Recipe.aciq(**bits)),
        Rung("min-max, smoothed", Recipe.minmax(**bits, smoothing=True)),
        Rung("Gram matrix", Recipe.adaround(**layers, method="gram")),
        Rung("Gram matrix, smoothed", Recipe.adaround(**layers, method="gram", smoothing=True)),
        Rung("AdaRound", Recipe.adaround(**layers)),
        Rung("AdaRound, batch norms tuned", Recipe.adaround(**layers, batchnorm_tuning=True)),
        Rung("blocks, AdaQuant", Recipe.adaround(**bits, **FREE_BLOCKS)),
        Rung("blocks, QDrop", Recipe.adaround(**bits, blocks=True)),
        Rung("AdaRound, mixed bits", Recipe.adaround(**layers, budget=budget)),
    )


def search(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_drop: float = 0.5,
    evaluate: Callable[[nn.Module], float] | None = None,
    rungs: Sequence[Rung] | None = None,
    weight_bits: int = 8,
    activation_bits: int | None = 8,
    progress: bool | None = None,
    forward: Forward | None = None,
    **options: Any,
) -> Search:
    """Quantize `model` by one recipe after the other until it loses at most `max_drop`.

    Args:
        model: left as it is.
        batches: calibration data, as in `fxquant.calibrate`; kept in memory, left as they are.
        max_drop: how much lower than the float model's a score may be.
        evaluate: returns the score of a model, a copy in eval mode; higher is better (top-1 in
            percent, mAP, …). None: every fourth batch is set aside, and the score is the percentage
            of its samples, or positions, for which the model's largest output is the float model's.
        rungs: what to try, in this order; None: `ladder(weight_bits, activation_bits)`.
        weight_bits: of the ladder.
        activation_bits: of the ladder; None leaves activations in float.
        progress: show bars; None means where there is a terminal or a notebook.
        forward: called as `forward(model, batch)`, as in `fxquant.calibrate`; what it returns are
            the outputs that are judged, where there is no `evaluate`.
        options: to `fxquant.quantize`: `example_inputs`, `leaf_modules`, `regions`, …

    Raises:
        RecipeError: `max_drop` is negative or NaN, or there is no rung.
        CalibrationError: fewer than two batches and no `evaluate`; a score that is not finite; a
            model whose outputs have no largest one.
    """
    if not max_drop >= 0:
        raise RecipeError(f"search: max_drop={max_drop!r}: give 0 or a positive number")
    rungs = _possible(ladder(weight_bits, activation_bits)) if rungs is None else tuple(rungs)
    if not rungs:
        raise RecipeError("search: `rungs` is empty: give at least one")
    for rung in rungs:
        if not isinstance(rung, Rung):
            raise RecipeError(
                f"search: {kind_of(rung)} among the rungs: give Rung(name, recipe), of "
                "fxquant.ladder"
            )
        if rung.recipe.budget is not None:
            require_scipy(f"search: {rung.name!r} has a budget")
    if not (evaluate is None or callable(evaluate)):
        raise RecipeError(
            f"search: evaluate={evaluate!r}: give a function that takes a model and returns its "
            "score"
        )
    require_module(model)
    require_batches(batches, "search", model, forward)
    model, kept = unwrapped(model), list(batches)
    _require_all(model, kept, forward)
    if evaluate is None:
        if len(kept) < 2:
            raise CalibrationError(
                f"search: {len(kept)} batch{'es' * (len(kept) != 1)}: give at least two, one to "
                "judge by, or `evaluate`"
            )
        judged = range(_JUDGED - 1, len(kept), _JUDGED) or range(len(kept) - 1, len(kept))
        evaluate = Agreement(model, [kept[number] for number in judged], "search", forward)
        kept = [batch for number, batch in enumerate(kept) if number not in judged]
    float_score = _score(evaluate, model, "the float model")
    attempts: list[Attempt] = []
    best: tuple[nn.Module, Attempt] | None = None
    with said_once(), UnitsBar("search", "recipes", [1] * len(rungs), progress) as shown:
        for rung in rungs:
            shown.begin(rung.name)
            start = time.perf_counter()
            quantized = quantize(
                model, kept, rung.recipe, progress=progress, forward=forward, **options
            )
            seconds = time.perf_counter() - start
            score = _score(evaluate, quantized, rung.name)
            attempts.append(Attempt(rung, score, float_score - score, seconds))
            _logger.info("%s: %.2f, %.2f below float", rung.name, score, float_score - score)
            shown.end()
            if best is None or score > best[1].score:
                best = quantized, attempts[-1]
            if attempts[-1].drop <= max_drop:
                best = quantized, attempts[-1]
                shown.stop()
                break
    assert best is not None
    found, attempt = best
    met = attempt.drop <= max_drop
    return Search(found, attempt.rung.recipe, met, max_drop, float_score, tuple(attempts))


def _possible(rungs: tuple[Rung, ...]) -> tuple[Rung, ...]:
    """Return the rungs that need nothing that is not installed."""
    try:
        require_scipy("search")
    except RecipeError as error:
        _logger.warning("%s: without it no bits are mixed", error)
        return tuple(rung for rung in rungs if rung.recipe.budget is None)
    return rungs


def _require_all(model: nn.Module, batches: Sequence[Any], forward: Forward | None) -> None:
    """Raise `CalibrationError` if the model cannot take a batch, before the rungs renumber them."""
    running = copy_to_run(model)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            call_on_batch(running, batch, f"batch {number}", forward)


def _score(evaluate: Callable[[nn.Module], float], model: nn.Module, name: str) -> float:
    found = evaluate(copy_to_run(model))
    try:
        own = float(found)
    except (TypeError, ValueError) as error:
        raise CalibrationError(
            f"search: `evaluate` returned {described(found)} for {name}: return one number"
        ) from error
    scores = gather_objects(own, f"the score of {name}")
    score: float = sum(scores) / len(scores)  # of all ranks, so that they go on or end together
    if not math.isfinite(score):
        raise CalibrationError(f"search: the score of {name} is {score}: `evaluate` must be finite")
    return score
